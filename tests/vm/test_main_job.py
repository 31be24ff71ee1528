"""init, join and a ping over kernel WireGuard between two hosts made of namespaces; then down, which leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.world import World

#: Without KVM a Python program takes seconds to start.
DEADLINE_S = 120


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with World("vm") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        yield world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")


def meshray(host: Host, *words: str) -> Any:
    return host.run(["meshray", *words, "--json"], deadline_s=DEADLINE_S).json()


def traces(host: Host) -> dict[str, str]:
    """What meshray might leave behind: interfaces, routes, firewall rules, processes."""
    return {
        "links": host.shell("ip -brief link | sort").stdout,
        "routes": host.shell("ip -4 route show table all | sort").stdout,
        "rules": host.run(["nft", "list", "ruleset"]).stdout,
        "processes": host.shell("ps -e -o args= | grep -c -i -E 'meshray|wireguard' || true").stdout,
    }


def test_two_nodes_over_kernel_wireguard(hosts: tuple[Host, Host]) -> None:
    head, worker = hosts
    before = [traces(host) for host in hosts]

    made = meshray(head, "init", "--no-ray", "--name", "head", "--advertise", str(head.address))
    joined = meshray(worker, "join", made["token"], "--no-ray", "--name", "worker")
    assert joined["mesh"] == made["mesh"]

    for host in hosts:
        (link,) = host.run(["ip", "-json", "-details", "link", "show", "meshray0"]).json()
        assert link["linkinfo"]["info_kind"] == "wireguard"
        assert host.run(["wg", "show", "meshray0", "peers"]).stdout.strip()
    assert worker.can_reach(made["node"]["ip"], deadline_s=10)
    assert head.can_reach(joined["node"]["ip"], deadline_s=10)
    # The packets really went through the tunnel.
    assert worker.run(["wg", "show", "meshray0", "latest-handshakes"]).stdout.split()[1] != "0"

    for host in reversed(hosts):
        host.run(["meshray", "down"], deadline_s=DEADLINE_S)
    assert [traces(host) for host in hosts] == before
