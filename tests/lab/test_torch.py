"""Training with torch.distributed between machines that only the overlay connects.

           switch wan 203.0.113.0/24
     ┌──────────────┼──────────────┐
   head          near-nat       far-nat      port-keeping, symmetric
203.0.113.10        │ 192.168.7.0  │ 192.168.8.0
                   near           far
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import torch_wheel
from tests.lab.cluster import Cluster
from tests.lab.world import World

#: The number of floats to sum up: 8 MB.
COUNT = 2_000_000
#: One process per node, started by Ray; nothing in it knows about the overlay.
JOB = f"""
import json, time, ray
from datetime import timedelta
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init("auto", log_to_driver=False)
nodes = {{node["NodeManagerHostname"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}}

@ray.remote(num_cpus=0)
class Rank:
    def address(self):
        return ray.util.get_node_ip_address()

    def reduce(self, rank, address):
        import os, socket, torch, torch.distributed as dist
        where = f"tcp://{{address}}:29500"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=timedelta(seconds=60))
        values = torch.full(({COUNT},), float(rank + 1))
        start = time.monotonic()
        dist.all_reduce(values)
        seconds = time.monotonic() - start
        dist.destroy_process_group()
        return {{"host": socket.gethostname(), "rank": rank, "least": float(values.min()), "most": float(values.max()),
                "seconds": seconds, "interface": os.environ.get("GLOO_SOCKET_IFNAME")}}

ranks = [
    Rank.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(nodes[name], soft=False),
        runtime_env={{"env_vars": {{"PYTHONPATH": FOLDER}}}},
    ).remote()
    for name in ("near", "far")
]
address = ray.get(ranks[0].address.remote(), timeout=60)
print(json.dumps(ray.get([rank.reduce.remote(n, address) for n, rank in enumerate(ranks)], timeout=90)))
"""


@pytest.fixture(scope="module")
def torch() -> Path:
    return torch_wheel.folder()


@pytest.fixture(scope="module")
def cluster(torch: Path) -> Iterator[Cluster]:
    with World("test-torch", keep=[torch]) as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        near = world.router("near-nat", wan, "203.0.113.37", lan="192.168.7.0/24", kind="easy")
        far = world.router("far-nat", wan, "203.0.113.38", lan="192.168.8.0/24", kind="symmetric")
        workers = [world.host("near", near.lan, "192.168.7.10"), world.host("far", far.lan, "192.168.8.10")]
        yield Cluster.start(head, workers)


@pytest.mark.timeout(900)  # The first time, torch is downloaded.
def test_an_all_reduce_between_two_nats(cluster: Cluster, torch: Path) -> None:
    ranks = cluster.python(JOB.replace("FOLDER", repr(str(torch))))
    print(ranks)
    assert [rank["host"] for rank in ranks] == ["near", "far"]
    for rank in ranks:
        assert (rank["least"], rank["most"]) == (3.0, 3.0)
        assert rank["interface"] == "meshray0"
