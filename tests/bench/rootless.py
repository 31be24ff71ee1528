"""A node without root beside one with root: the cost of the namespaces."""

from __future__ import annotations

import json
from collections.abc import Callable

from meshray.wireguard.engines import STOCK
from tests.bench.figures import Figure, Measured, Target
from tests.bench.stream import MESHRAY, Way, listen, require_iperf3, stream
from tests.lab.cluster import UP_DEADLINE_S, Cluster
from tests.lab.host import USER, Host
from tests.lab.unprivileged import give_tun
from tests.lab.world import World

TITLE = "A node without root"
HOW = """
iperf3, one stream, between the head, which runs as root, and two workers in turn: one with root, and one of an
ordinary user in its own namespaces. All three use the same engine. A third worker runs without root and without
meshray's engine: wireguard-go inside pasta. All hosts are on one switch. Both directions, every second round in
reverse order; the ratios are those of each round. Ray does not run.
"""
ROUNDS = 5
SECONDS = 3
LOWEST_RATIO = 0.9


def measure(report: Callable[[str], None]) -> Measured:
    """Measure rounds over both workers and both directions."""
    require_iperf3()
    with World("bench-rootless") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        login, stock = world.host("login", wan, "203.0.113.30"), world.host("stock", wan, "203.0.113.40")
        cluster = Cluster.without_ray(head, [worker])
        token = cluster.answers["head"]["token"]
        for host in (login, stock):
            host.shell("ip route add default via 203.0.113.10")  # Without one, pasta has nothing to offer.
            give_tun(host)
            env = {"MESHRAY_ENGINE": STOCK} if host is stock else {}
            host.run(["meshray", "join", "--no-ray", token], user=USER, env=env, deadline_s=UP_DEADLINE_S)
        way = Way(MESHRAY, cluster.ip(head))
        listen(head, way)
        ends: tuple[tuple[Host, list[str]], ...] = ((worker, []), (login, entered(login)), (stock, entered(stock)))
        rates = {(host.name, from_head): list[float]() for host, _ in ends for from_head in (False, True)}
        for number in range(-1, ROUNDS):
            report(f"round {number + 1} of {ROUNDS}" if number >= 0 else "a round to find the direct paths")
            for host, inside in ends if number % 2 == 0 else ends[::-1]:
                for from_head in (False, True):
                    rate = stream(host, way, SECONDS, from_head=from_head, inside=inside)
                    if number >= 0:
                        rates[host.name, from_head].append(rate)
    figures = []
    for from_head, direction in ((False, "to the head"), (True, "from the head")):
        of_root, without, carried = (rates[host.name, from_head] for host, _ in ends)
        figures += [
            Figure(f"with root, {direction}", "Gbit/s", tuple(of_root)),
            Figure(f"without root, {direction}", "Gbit/s", tuple(without)),
            Figure(f"{STOCK} inside pasta, {direction}", "Gbit/s", tuple(carried)),
            Figure(
                f"without / with root, {direction}", "", ratio(without, of_root), Target(LOWEST_RATIO, at_least=True)
            ),
            Figure(f"{STOCK} inside pasta / without root, {direction}", "", ratio(carried, without)),
        ]
    return Measured(tuple(figures))


def ratio(mine: list[float], theirs: list[float]) -> tuple[float, ...]:
    """Return the ratio of each round."""
    return tuple(one / other for one, other in zip(mine, theirs, strict=True))


def entered(host: Host) -> list[str]:
    """Return the prefix that runs a command inside the namespaces of the user's node on this host."""
    namespace = json.loads(host.path(f"/home/{USER}/.local/share/meshray/run/namespace.json").read_text())
    return ["python", "-I", "-m", "meshray.runtime.rootless.enter", str(namespace["first"]), "--"]
