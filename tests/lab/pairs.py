"""One Ray job over all nodes of a cluster: tasks, actors, and an object between every ordered pair of nodes.

It runs like any Ray program, and knows nothing about meshray:

    meshray run -- python tests/lab/pairs.py --nodes 3 --mebibytes 50

It prints a line per step, and with --json only one object with all of them. Exit status 1 if a result is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import socket
import sys
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

#: The timeout of any single answer, seconds.
DEADLINE_S = 90


def nodes_of_cluster(count: int) -> dict[str, str]:
    """Return Ray's node id by host name, as soon as this many nodes are alive."""
    end = time.monotonic() + DEADLINE_S
    while True:
        alive = [node for node in ray.nodes() if node["Alive"]]
        if len(alive) >= count or time.monotonic() > end:
            return {node["NodeManagerHostname"]: node["NodeID"] for node in alive}
        time.sleep(0.2)


def only_on(node_id: str) -> dict[str, Any]:
    """Return the options of a task or actor that must run on that node, and nowhere else when that fails."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


@ray.remote(max_retries=0)
def where_am_i() -> str:
    """Return the name of the host that runs this."""
    return socket.gethostname()


@ray.remote(max_retries=0, num_returns=2)
def make(size: int) -> tuple[bytes, str]:
    """Return this many random bytes, and their hash."""
    data = os.urandom(size)
    return data, hashlib.sha256(data).hexdigest()


@ray.remote(max_retries=0)
def digest(data: bytes) -> str:
    """Return the hash of the received bytes."""
    return hashlib.sha256(data).hexdigest()


class Postman:
    """An actor that records its callers, and calls others."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def hear(self, sender: str) -> str:
        """Record the caller; answer with the own host's name."""
        self.heard.append(sender)
        return socket.gethostname()

    def call(self, others: list[Any]) -> list[str]:
        """Call the others; return their names."""
        return list(ray.get([other.hear.remote(socket.gethostname()) for other in others], timeout=DEADLINE_S))

    def callers(self) -> list[str]:
        """Return the callers."""
        return sorted(self.heard)


def run_tasks(nodes: dict[str, str]) -> dict[str, str]:
    """Return where a task meant for each node ran."""
    asked = {name: where_am_i.options(**only_on(node)).remote() for name, node in nodes.items()}
    return {name: ray.get(answer, timeout=DEADLINE_S) for name, answer in asked.items()}


def run_actors(nodes: dict[str, str]) -> dict[str, list[str]]:
    """Return the callers of each node's actor, when every actor calls all others."""
    remote_postman: Any = ray.remote(Postman)
    # Each waits for the others while they call it: one thread per actor would be a deadlock.
    threads = len(nodes)
    actors = {
        name: remote_postman.options(**only_on(node), max_concurrency=threads).remote() for name, node in nodes.items()
    }
    calls = [actor.call.remote([other for other in actors.values() if other is not actor]) for actor in actors.values()]
    ray.get(calls, timeout=DEADLINE_S)
    return {name: ray.get(actor.callers.remote(), timeout=DEADLINE_S) for name, actor in actors.items()}


def carry_object(source: str, target: str, size: int) -> tuple[bool, float]:
    """Return whether an object of one node arrives undamaged on another, and in how many seconds."""
    data, expected = make.options(**only_on(source)).remote(size)
    expected = ray.get(expected, timeout=DEADLINE_S)
    start = time.monotonic()
    arrived = ray.get(digest.options(**only_on(target)).remote(data), timeout=DEADLINE_S)
    return arrived == expected, time.monotonic() - start


def main() -> int:
    """Run the program; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--mebibytes", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = (lambda line: None) if options.json else (lambda line: print(line, flush=True))

    ray.init("auto", log_to_driver=False, logging_level="WARNING")
    nodes = nodes_of_cluster(options.nodes)
    report(f"cluster  {', '.join(nodes)}: {ray.cluster_resources().get('CPU', 0):g} CPUs")
    tasks = run_tasks(nodes)
    report(f"tasks    one on each node: {', '.join(tasks.values())}")
    actors = run_actors(nodes)
    report(f"actors   {sum(map(len, actors.values()))} calls, each of the {len(actors)} actors to all others")
    objects = []
    for source, target in itertools.permutations(nodes, 2):
        intact, seconds = carry_object(nodes[source], nodes[target], options.mebibytes * 2**20)
        objects.append({"from": source, "to": target, "intact": intact, "seconds": round(seconds, 2)})
        verdict = "intact" if intact else "DAMAGED"
        report(f"object   {options.mebibytes} MiB  {source:>8} → {target:8} {verdict} in {seconds:.1f} s")
    if options.json:
        print(json.dumps({"nodes": list(nodes), "tasks": tasks, "actors": actors, "objects": objects}))
    correct = (
        len(nodes) >= options.nodes
        and all(name == ran_on for name, ran_on in tasks.items())
        and all(callers == sorted(set(nodes) - {name}) for name, callers in actors.items())
        and all(one["intact"] for one in objects)
    )
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
