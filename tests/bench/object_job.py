"""Move one large object from the head to the node where this runs, and print the seconds that it took.

python -m tests.bench.object_job HEAD_IP:PORT
"""

from __future__ import annotations

import json
import sys
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

#: The object's size.
BYTES = 10**9
_DEADLINE_S = 120


@ray.remote(max_retries=0, num_cpus=0)
def make() -> bytes:
    """Return the object; its content does not matter, since it is encrypted."""
    return bytes(BYTES)


@ray.remote(max_retries=0, num_cpus=0)
def fetch(held: list[ray.ObjectRef[bytes]]) -> float:
    """Return the seconds until the object is in this node's store."""
    start = time.monotonic()
    ready, _ = ray.wait(held, timeout=_DEADLINE_S, fetch_local=True)
    if not ready:
        raise TimeoutError("the object did not come")
    return time.monotonic() - start


def main() -> None:
    """Run the program; see the module's docstring."""
    ray.init(sys.argv[1], log_to_driver=False, logging_level="WARNING")
    here = ray.get_runtime_context().get_node_id()
    (head,) = (node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here)
    only_on = NodeAffinitySchedulingStrategy
    made = make.options(scheduling_strategy=only_on(head, soft=False)).remote()
    ray.wait([made], timeout=_DEADLINE_S, fetch_local=False)
    seconds = ray.get(fetch.options(scheduling_strategy=only_on(here, soft=False)).remote([made]), timeout=_DEADLINE_S)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
