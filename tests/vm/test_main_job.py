"""init, join, a ping and a clock set back, over kernel WireGuard between two namespaces; then down."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.lab.world import World
from tests.vm.conftest import REPORTS_FD

#: Without KVM a Python program takes seconds to start.
DEADLINE_S = 480
#: After the clock was set back by an hour.
WHOLE_S = 120


def meshray(host: Host, *words: str) -> Any:
    return host.run(["meshray", *words, "--json"], deadline_s=DEADLINE_S).json()


def traces(host: Host) -> dict[str, str]:
    """Return what meshray might leave behind: interfaces, routes, firewall rules, processes."""
    return {
        "links": host.shell("ip -brief link | sort").stdout,
        "routes": host.shell("ip -4 route show table all | sort").stdout,
        "rules": host.run(["nft", "list", "ruleset"]).stdout,
        "processes": host.shell("ps -e -o args= | grep -c -i -E 'meshray|wireguard' || true").stdout,
    }


@dataclass(frozen=True)
class Mesh:
    """Two nodes, the address that each was assigned, and the state of their hosts before."""

    head: Host
    worker: Host
    ips: tuple[str, str]
    before: list[dict[str, str]]

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.head, self.worker


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with World("vm") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        before = [traces(host) for host in (head, worker)]
        made = meshray(head, "init", "--no-ray", "--name", "head", "--advertise", str(head.address))
        joined = meshray(worker, "join", made["token"], "--no-ray", "--name", "worker")
        assert joined["mesh"] == made["mesh"]
        yield Mesh(head, worker, (made["node"]["ip"], joined["node"]["ip"]), before)


def test_two_nodes_over_kernel_wireguard(mesh: Mesh) -> None:
    for host in mesh.hosts:
        (link,) = host.run(["ip", "-json", "-details", "link", "show", "meshray0"]).json()
        assert link["linkinfo"]["info_kind"] == "wireguard"
        assert host.run(["wg", "show", "meshray0", "peers"]).stdout.strip()
    assert mesh.worker.can_reach(mesh.ips[0], deadline_s=10)
    assert mesh.head.can_reach(mesh.ips[1], deadline_s=10)
    # The packets really went through the tunnel.
    assert mesh.worker.run(["wg", "show", "meshray0", "latest-handshakes"]).stdout.split()[1] != "0"


@pytest.mark.skipif(REPORTS_FD not in os.environ, reason="sets the kernel's clock: only in a guest")
def test_a_clock_that_is_set_back_an_hour_leaves_no_dead_tunnel(mesh: Mesh) -> None:
    """WireGuard refuses handshakes that are older than a key's last one: old keys would be dead for an hour."""

    def keys() -> list[str]:
        return [host.run(["wg", "show", "meshray0", "public-key"]).stdout.strip() for host in mesh.hosts]

    def handshakes() -> list[list[str]]:
        return [host.run(["wg", "show", "meshray0", "latest-handshakes"]).stdout.split() for host in mesh.hosts]

    def is_whole() -> bool:
        now, seen = keys(), handshakes()  # A device has no peer for a moment.
        return (
            not set(now) & set(before)
            and [line[:1] for line in seen] == [[key] for key in now[::-1]]
            and all(0 < int(line[1]) < begun - 3000 for line in seen)
            and mesh.worker.can_reach(mesh.ips[0])
            and mesh.head.can_reach(mesh.ips[1])
        )

    before, begun, since = keys(), time.time(), time.monotonic()
    # The whole guest has one clock.
    mesh.head.run(["date", "--set", f"@{begun - 3600:.0f}"])
    try:
        wait_until(is_whole, WHOLE_S, "new keys and handshakes by them", evidence=lambda: f"{keys()} {handshakes()}")
    finally:
        mesh.head.run(["date", "--set", f"@{begun + time.monotonic() - since:.0f}"])


def test_down_leaves_nothing(mesh: Mesh) -> None:
    for host in reversed(mesh.hosts):
        host.run(["meshray", "down"], deadline_s=DEADLINE_S)
    assert [traces(host) for host in mesh.hosts] == mesh.before
