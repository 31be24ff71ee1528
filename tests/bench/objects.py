"""A large Ray object over the overlay, compared with iperf3 there."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.bench.figures import Figure, Measured, Target
from tests.bench.object_job import BYTES
from tests.bench.stream import MESHRAY, Way, engine_of, listen, require_iperf3, stream
from tests.lab.cluster import UP_DEADLINE_S, Cluster
from tests.lab.host import REPOSITORY, Host
from tests.lab.world import World

TITLE = "A Ray object of 1 GB"
HOW = """
A task on the head creates an object of 10⁹ bytes. A task on the worker requests it and waits until it is in the
worker's object store (`ray.wait` with `fetch_local`), so only Ray's transfer is timed. Then iperf3, one stream, from
the head to the worker over the same overlay. The two take turns; the ratio is that of each round. The same over a
line of 500 Mbit/s, and for comparison between two Rays that were started by hand, without a tunnel. Ray's processes
and the engines of both ends share the cores, which are the limit without the line.
"""
ROUNDS = 5
SECONDS = 4
LOWEST_RATIO = 0.9
#: The rate of a link between two machines; their cores then have time left.
LINE_MBIT = 500
_RAY_ARGS = ("--num-cpus=1", f"--object-store-memory={int(1.5 * BYTES)}")
_GCS_PORT = 6379


def measure(report: Callable[[str], None]) -> Measured:
    """Measure rounds of an object and a stream, over the overlay and without it."""
    require_iperf3()
    with World("bench-objects") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        cluster = Cluster.start(head, [worker], ray_args=_RAY_ARGS)
        engine = engine_of(head)
        through = ["meshray", "run", "--"]
        way = Way(MESHRAY, cluster.ip(head))
        listen(head, way)
        overlay = measured(report, "overlay", through, worker, way)
        shaped = f"tc qdisc add dev eth0 root tbf rate {LINE_MBIT}mbit burst 256kb latency 20ms"
        for host in (head, worker):
            host.run(shaped.split())
        line = measured(report, "a line", through, worker, way)
        for host in (worker, head):
            host.run(["tc", "qdisc", "delete", "dev", "eth0", "root"])
            host.run(["meshray", "leave", "--yes"], deadline_s=UP_DEADLINE_S)
        start_by_hand(head, worker)
        way = Way("eth0", str(head.address))
        listen(head, way)
        plain = measured(report, "no tunnel", [], worker, way)
    return Measured(
        (
            *figures("over the overlay", *overlay, Target(LOWEST_RATIO, at_least=True)),
            *figures(f"over the overlay, line of {LINE_MBIT} Mbit/s", *line, Target(LOWEST_RATIO, at_least=True)),
            *figures("plain veth", *plain),
        ),
        (f"Engine: {engine}.",),
    )


def measured(
    report: Callable[[str], None], what: str, through: list[str], worker: Host, way: Way
) -> tuple[list[float], list[float]]:
    """Return the rates of the objects and of the streams, Gbit/s. The first round warms the object stores' memory."""
    objects, streams = [], []
    for number in range(ROUNDS + 1):
        report(f"{what}, round {number} of {ROUNDS}")
        job = [*through, sys.executable, "-m", "tests.bench.object_job", f"{way.head_ip}:{_GCS_PORT}"]
        seconds = worker.run(job, cwd=REPOSITORY, deadline_s=180).last_json()["seconds"]
        objects.append(8 * BYTES / seconds / 1e9)
        streams.append(stream(worker, way, SECONDS, from_head=True))
    return objects[1:], streams[1:]


def figures(where: str, objects: list[float], streams: list[float], target: Target | None = None) -> list[Figure]:
    """Return both rates and their ratio."""
    ratios = tuple(ours / theirs for ours, theirs in zip(objects, streams, strict=True))
    return [
        Figure(f"object, {where}", "Gbit/s", tuple(objects)),
        Figure(f"iperf3, {where}", "Gbit/s", tuple(streams)),
        Figure(f"object / iperf3, {where}", "", ratios, target),
    ]


def start_by_hand(head: Host, worker: Host) -> None:
    """Start two Rays without a mesh."""
    head.run(["ray", "start", "--head", f"--node-ip-address={head.address}", *_RAY_ARGS], deadline_s=UP_DEADLINE_S)
    options = [f"--address={head.address}:{_GCS_PORT}", f"--node-ip-address={worker.address}", *_RAY_ARGS]
    worker.run(["ray", "start", *options], deadline_s=UP_DEADLINE_S)
