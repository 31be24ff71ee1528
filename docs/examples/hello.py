"""Says hello from every node of the cluster.

meshray run -- python docs/examples/hello.py
"""

from __future__ import annotations

import os
import socket

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0, max_retries=0)
def hello() -> tuple[str, str]:
    """Runs on the node it was sent to, and tells which one that is."""
    return ray.get_runtime_context().get_node_id(), f"hello from {socket.gethostname()}, process {os.getpid()}"


def main() -> None:
    """One task to every node; all of them must answer, each from where it was sent."""
    ray.init("auto")
    nodes = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
    # soft=False: this very node or none, where Ray alone would put all three on the least busy one.
    tasks = {
        node_id: hello.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()
        for node_id in nodes
    }
    for node_id, task in tasks.items():
        ran_on, greeting = ray.get(task, timeout=45)
        assert ran_on == node_id
        print(f"{nodes[node_id]}: {greeting}")
    print(f"{len(nodes)} nodes, {ray.cluster_resources().get('CPU', 0):.0f} CPUs")


if __name__ == "__main__":
    main()
