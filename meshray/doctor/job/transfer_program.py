"""A Ray program that moves data between all nodes.

It runs in the interpreter of this node's Ray, which may be another environment than meshray's: the only package that it
imports is Ray.

    meshray run -- python - '{"nodes": {"10.99.0.1": "head", "10.99.0.2": "gpu-1"}}' < transfer_program.py

It is read from standard input, because this folder contains another package named `ray`.

It prints one JSON object per line: a task on each node, then random bytes between every ordered pair. Tasks need no
CPU, so that a busy cluster can be checked; they are not retried; nothing waits without a deadline. Its tasks and
objects end with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from typing import Any

#: The time until Ray has detected that a node's raylet was killed; until then it lists the next one beside it.
DETECTION_S = 30.0
#: The first task on a node starts a worker there, which imports Ray.
TASK_S = 40.0
#: The timeout for one object; 16 MiB pass a 5 Mbit/s link in that time.
MOVE_S = 30.0
#: The additional time for the task itself.
ANSWER_S = 5.0
#: Larger than the 100 KiB up to which Ray returns results with the answer, and several of its chunks.
SIZE = 16 * 2**20


def rounds(names: list[str]) -> list[list[tuple[str, str]]]:
    """Return every ordered pair once, in rounds in which each node sends to one other and receives from one other."""
    count = len(names)
    return [[(names[i], names[(i + shift) % count]) for i in range(count)] for shift in range(1, count)]


def create(size: int) -> tuple[bytes, str]:
    """Return this many random bytes, and their hash."""
    data = os.urandom(size)
    return data, hashlib.sha256(data).hexdigest()


def fetch(holder: list[Any], timeout_s: float) -> tuple[str, float]:
    """Return the hash of an object fetched from another node, and the seconds that the transfer took."""
    import ray

    start = time.monotonic()
    data = ray.get(holder[0], timeout=timeout_s)
    return hashlib.sha256(data).hexdigest(), time.monotonic() - start


def node_address() -> str:
    """Return the address of the node that runs this."""
    import ray

    return str(ray.util.get_node_ip_address())


def print_event(**event: object) -> None:
    """Print one line of the answer."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def pinned_to(node_id: str) -> dict[str, Any]:
    """Return the options of a task that must run on that node and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def ids_of(nodes: dict[str, str]) -> dict[str, str]:
    """Return Ray's ids by our names of its living nodes, as soon as it lists one for each address."""
    import ray

    end = time.monotonic() + DETECTION_S
    while True:
        alive = [node for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] in nodes]
        ids = {nodes[node["NodeManagerAddress"]]: node["NodeID"] for node in alive}
        if len(ids) == len(alive) or time.monotonic() > end:
            return ids
        time.sleep(0.5)


def run_tasks(ids: dict[str, str], addresses: dict[str, str], again: bool) -> list[str]:
    """Run a task on each node; return the names of those on which it ran."""
    import ray

    start = time.monotonic()
    task = ray.remote(node_address)
    tasks = {name: task.options(**pinned_to(node)).remote() for name, node in ids.items()}
    succeeded = []
    for name, answer in tasks.items():
        error = ""
        try:
            ran_at = ray.get(answer, timeout=max(0.1, start + TASK_S - time.monotonic()))
            error = "" if ran_at == addresses[name] else f"it ran at {ran_at}"
        except Exception as failure:
            error = describe_failure(failure)
        if not error:
            succeeded.append(name)
        print_event(step="task", again=again, target=name, seconds=round(time.monotonic() - start, 2), error=error)
    return succeeded


def move(pairs: list[tuple[str, str]], ids: dict[str, str], again: bool, timeout_s: float) -> None:
    """Move an object over each of these pairs at the same time."""
    import ray

    start = time.monotonic()
    creator, fetcher = ray.remote(create), ray.remote(fetch)
    created = {pair: creator.options(num_returns=2, **pinned_to(ids[pair[0]])).remote(SIZE) for pair in pairs}
    fetched = {pair: fetcher.options(**pinned_to(ids[pair[1]])).remote([created[pair][0]], timeout_s) for pair in pairs}
    for source, target in pairs:
        seconds, error = 0.0, ""
        try:
            expected = ray.get(created[source, target][1], timeout=remaining_s(start, timeout_s))
            arrived, seconds = ray.get(fetched[source, target], timeout=remaining_s(start, timeout_s))
            error = "" if arrived == expected else "it arrived damaged"
        except Exception as failure:
            error, seconds = describe_failure(failure), time.monotonic() - start
        print_event(step="move", again=again, source=source, target=target, seconds=round(seconds, 3), error=error)


def remaining_s(start: float, timeout_s: float) -> float:
    """Return the time left for one round: the task's own timeout, and a little for its answer."""
    return max(0.1, start + timeout_s + ANSWER_S - time.monotonic())


def describe_failure(failure: Exception) -> str:
    """Return the kind of the failure and its first line."""
    cause = getattr(failure, "cause", None) or failure
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0][:200]}" if lines else type(cause).__name__


def test_all(nodes: dict[str, str], again: bool, move_s: float) -> None:
    """Test all nodes and all pairs once."""
    ids = ids_of(nodes)
    for name in sorted(set(nodes.values()) - set(ids)):
        print_event(step="task", again=again, target=name, seconds=0.0, error="Ray does not list it as ALIVE")
    succeeded = run_tasks(ids, {name: ip for ip, name in nodes.items()}, again)
    for pairs in rounds(sorted(succeeded)):
        move(pairs, ids, again, move_s)


def main() -> int:
    """Run the program; see the module's docstring."""
    import ray

    order = json.loads(sys.argv[1])
    # This machine may run several Rays: RAY_ADDRESS in the environment selects one.
    ray.init("auto", log_to_driver=False, logging_level="ERROR")
    move_s = float(order.get("move_s", MOVE_S))
    test_all(order["nodes"], again=False, move_s=move_s)
    pause_s = float(order.get("again_after_s", 0))
    if pause_s:
        until = time.monotonic() + pause_s
        while (remaining := until - time.monotonic()) > 0:
            print_event(step="wait", seconds=round(remaining))
            time.sleep(min(10.0, remaining))
        test_all(order["nodes"], again=True, move_s=move_s)
    print_event(step="done")
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
