"""A node without root beside one with: what the namespaces cost."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.bench.figures import Figure, Measured, Target
from tests.bench.stream import MESHRAY, Way, listen, require_iperf3, stream
from tests.lab.cluster import UP_DEADLINE_S, Cluster
from tests.lab.host import PERSON, Host
from tests.lab.world import World

TITLE = "A node without root"
HOW = """
iperf3, one stream, between the head, which root runs, and two workers in turn: one of root's, and one of an ordinary
user's in namespaces of its own. Three hosts on one switch, the same engine on all, both
ways, every second round in the other order; the ratios are those of each round. No Ray runs.
"""
ROUNDS = 5
SECONDS = 3
LOWEST_RATIO = 0.9


def measure(say: Callable[[str], None]) -> Measured:
    """Rounds over both workers and both ways."""
    require_iperf3()
    with World("bench-rootless") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        login = world.host("login", wan, "203.0.113.30")
        # A device of its own, whose mode is nobody else's matter.
        login.shell("mount -t tmpfs tmpfs /dev/net && mknod -m 0666 /dev/net/tun c 10 200")
        cluster = Cluster.without_ray(head, [worker])
        token = cluster.answers["head"]["token"]
        login.run(["meshray", "join", "--no-ray", token], user=PERSON, deadline_s=UP_DEADLINE_S)
        way = Way(MESHRAY, cluster.ip(head))
        listen(head, way)
        namespace = f"/home/{PERSON}/.local/share/meshray/run/namespace.json"
        pid = str(json.loads(login.path(namespace).read_text())["first"])
        enter = ["python", "-I", "-m", "meshray.runtime.rootless.enter", pid, "--"]
        ends: tuple[tuple[Host, list[str]], ...] = ((worker, []), (login, enter))
        rates = {(host.name, from_head): list[float]() for host, _ in ends for from_head in (False, True)}
        for number in range(-1, ROUNDS):
            say(f"round {number + 1} of {ROUNDS}" if number >= 0 else "a round to find the direct paths")
            for host, inside in ends if number % 2 == 0 else reversed(ends):
                for from_head in (False, True):
                    rate = stream(host, way, SECONDS, from_head=from_head, inside=inside)
                    if number >= 0:
                        rates[host.name, from_head].append(rate)
    figures = []
    for from_head, direction in ((False, "to the head"), (True, "from the head")):
        of_root, without = rates["worker", from_head], rates["login", from_head]
        ratios = tuple(mine / theirs for mine, theirs in zip(without, of_root, strict=True))
        figures += [
            Figure(f"with root, {direction}", "Gbit/s", tuple(of_root)),
            Figure(f"without root, {direction}", "Gbit/s", tuple(without)),
            Figure(f"without / with root, {direction}", "", ratios, Target(LOWEST_RATIO, at_least=True)),
        ]
    return Measured(tuple(figures))
