"""Other programs remove, replace and hide the overlay's routes; the agent restores them, and changes no other route.

    switch wan 203.0.113.0/24, packets of 1280 bytes
     ┌──────────┴──────────┐
   head                  worker
203.0.113.10          203.0.113.20
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.lab.world import World

#: A route is back, and packets pass, within this time, seconds.
BACK_S = 8
OVERLAY = "10.99.0.0/16"


@dataclass(frozen=True)
class Mesh:
    cluster: Cluster
    head: Host
    worker: Host

    def peer(self, host: Host) -> str:
        """Return the overlay address of the other node."""
        return self.cluster.ip(self.worker if host is self.head else self.head)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with World("routes") as world:
        wan = replace(world.switch("wan", "203.0.113.0/24"), mtu=1280)
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        mesh = Mesh(Cluster.without_ray(head, [worker], join=["--transport", "udp"]), head, worker)
        wait_until(lambda: all(routes(host, f"{mesh.peer(host)}/32") for host in (head, worker)), 20, "narrow routes")
        yield mesh


def routes(host: Host, destination: str, *more: str) -> list[dict[str, Any]]:
    answer = host.run(["ip", "-json", "route", "show", *more, destination], check=False).stdout.strip()
    return [route for route in (json.loads(answer or "[]")) if route]


def is_ours(host: Host, destination: str = OVERLAY) -> bool:
    """Return whether the first route of this destination is the overlay's own."""
    first = next(iter(routes(host, destination)), {})
    return first.get("dev") == "meshray0" and not {"gateway", "type"} & first.keys() and not first.get("metrics")


def break_and_wait(mesh: Mesh, host: Host, command: str, *, destination: str = OVERLAY) -> float:
    """Run the command; return the seconds until the route is the overlay's own again and pings pass."""
    host.shell(command)
    began = time.monotonic()
    wait_until(
        lambda: is_ours(host, destination) and host.can_reach(mesh.peer(host)), BACK_S, f"the route after: {command}"
    )
    took = time.monotonic() - began
    print(f"{host.name}: {command}: back after {took:.1f} s")
    return took


@pytest.mark.parametrize("name", ["head", "worker"])
@pytest.mark.parametrize(
    "command",
    [
        "ip route flush dev meshray0",
        f"ip route del {OVERLAY}; ip route del {{peer}}",
        f"ip route del {{peer}}; ip route replace {OVERLAY} dev eth0",
        f"ip route del {{peer}}; ip route replace {OVERLAY} via {{other}}",
        f"ip route del {{peer}}; ip route replace blackhole {OVERLAY}",
        f"ip route del {{peer}}; ip route prepend {OVERLAY} dev eth0",
        f"ip route del {{peer}}; ip route replace {OVERLAY} dev meshray0 mtu 600",
    ],
)
def test_the_overlays_own_route_comes_back(mesh: Mesh, command: str, name: str) -> None:
    host = mesh.head if name == "head" else mesh.worker
    other = mesh.worker if name == "head" else mesh.head
    break_and_wait(mesh, host, command.format(peer=mesh.peer(host), other=other.address))
    (route,) = routes(host, OVERLAY)
    assert (route["protocol"], route["scope"], route["prefsrc"]) == ("kernel", "link", mesh.cluster.ip(host))
    assert not route.get("metrics"), route


@pytest.mark.parametrize(
    "command",
    [
        "ip route del {peer}",
        "ip route replace {peer} dev meshray0 proto 109 mtu 1404",
        "ip route replace {peer} dev meshray0 proto static mtu 1200",
        "ip route replace {peer} dev eth0",
        "ip route replace {peer} via {other}",
        "ip route replace blackhole {peer}",
        "ip route prepend {peer} dev eth0",
    ],
)
def test_the_route_with_a_peers_mtu_comes_back(mesh: Mesh, command: str) -> None:
    host, peer = mesh.worker, mesh.peer(mesh.worker)
    (before,) = routes(host, f"{peer}/32")
    assert (before["protocol"], before["metrics"]) == ("109", [{"mtu": 1200}])
    host.shell(command.format(peer=peer, other=mesh.head.address))
    wait_until(lambda: routes(host, f"{peer}/32") == [before] and host.can_reach(peer), BACK_S, f"{before} again")


def test_foreign_routes_are_not_touched(mesh: Mesh) -> None:
    host = mesh.worker
    theirs = [
        f"{OVERLAY} dev eth0 metric 500",
        "10.0.0.0/8 dev eth0",
        "10.99.200.0/24 dev eth0",
        "10.99.0.0/17 dev eth0 metric 700 table 107",
        "blackhole 10.99.77.7",
        "0.0.0.0/1 dev eth0",
        "128.0.0.0/1 dev eth0",
    ]
    for route in theirs:
        host.shell(f"ip route add {route}")

    def others() -> list[str]:
        lines = host.shell("ip -N -details route show table all").stdout.splitlines()
        return [line for line in lines if "meshray0" not in line]

    try:
        before = others()
        break_and_wait(mesh, host, "ip route flush dev meshray0")
        break_and_wait(mesh, host, f"ip route replace {OVERLAY} dev eth0")
        assert others() == before
        assert len(routes(host, OVERLAY)) == 2
    finally:
        for route in theirs:
            host.shell(f"ip route del {route}")


def test_a_repeatedly_removed_route_is_reported_and_not_restored_for_ever(mesh: Mesh) -> None:
    host = mesh.worker
    log = "/var/lib/meshray/log/agent.log"
    marker = f"{OVERLAY} to meshray0"
    remover = host.popen(["sh", "-c", f"while :; do ip route del {OVERLAY} dev meshray0 2>/dev/null; sleep 0.02; done"])

    def put_back() -> int:
        return host.path(log).read_text().count(marker)

    def problems() -> list[str]:
        answer: list[str] = host.run(["meshray", "status", "--json"], check=False).json()["problems"]
        return [problem for problem in answer if OVERLAY in problem]

    try:
        wait_until(problems, 30, "the problem in status")
        before, began = put_back(), time.monotonic()
        wait_until(lambda: time.monotonic() - began > 5, 6, "five seconds")
        assert put_back() - before <= 2
    finally:
        remover.stop()
    wait_until(lambda: is_ours(host) and host.can_reach(mesh.peer(host)), 60, "peace")
    wait_until(lambda: not problems(), 120, "no problem in status")
