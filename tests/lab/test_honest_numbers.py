"""`status` shows current values of a path, and the doctor does not report past faults.

           switch wan 203.0.113.0/24
     ┌──────────────┼──────────────┐
   head          near-nat       far-nat
203.0.113.10        │ 192.168.7.0  │ 192.168.8.0
                   near           far
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.cluster import Cluster
from tests.lab.doctoring import ask
from tests.lab.host import Host
from tests.lab.trouble import away
from tests.lab.world import Router, World

GAP_S, GAPS = 20, 3
#: The time after a gap until status and doctor report nothing about it.
FEW_SECONDS = 15
#: Nothing in this lab takes longer, however busy the machine is.
SLOWEST_MS = 250
#: Checks that count packets.
_OF_PACKETS = {"udp_in", "udp_out", "one_way", "path_loss", "path_mtu", "handshake_fresh", "peer_answers"}

NO_UDP = "table ip late { chain late { type filter hook forward priority -10; meta l4proto udp drop; }; }"


@dataclass
class Net:
    world: World
    cluster: Cluster
    routers: dict[str, Router]

    def worker(self, name: str) -> Host:
        return self.world.hosts[name]

    def wrong(self, *hosts: Host) -> list[str]:
        """Return the wrong statements of `status` on these hosts about the paths of this healthy mesh."""
        found = []
        for host in hosts:
            status = self.cluster.meshray(host, "status", check=False)
            found += [f"{host.name}: {problem}" for problem in status["problems"] if "(10.99.0." in problem]
            found += [f"{host.name} → {node['name']}: {node['path']}" for node in status["nodes"] if lies(node["path"])]
        return found

    def online(self) -> set[str]:
        """Return the names of the nodes that are online for the head."""
        nodes = self.cluster.meshray(self.cluster.head, "status", check=False)["nodes"]
        return {node["name"] for node in nodes if node["online"]}

    def lost(self, *hosts: Host) -> list[str]:
        """Return the paths on which `status` shows loss."""
        shown = {host.name: self.cluster.meshray(host, "status", check=False)["nodes"] for host in hosts}
        return [
            f"{me} → {to['name']}: {to['path']}" for me, nodes in shown.items() for to in nodes if to["path"]["loss"]
        ]

    def wrong_after_a_gap(self, *hosts: Host) -> list[str]:
        """Return what is still wrong when a gap has been over for some seconds, or is wrong again soon after."""
        end = time.monotonic() + FEW_SECONDS
        while (wrong := self.wrong(*hosts)) and time.monotonic() < end:
            time.sleep(0.3)
        if wrong:
            return wrong
        if answer := self.warnings(*hosts):
            return [str(check) for check in answer]
        time.sleep(5)
        return self.wrong(*hosts)

    def warnings(self, *hosts: Host) -> list[dict[str, Any]]:
        """Return the doctor's findings about packets on these hosts that are not ok."""
        return [
            check
            for host in hosts
            for check in ask(host).checks
            if check["status"] in ("warn", "fail") and check["code"] in _OF_PACKETS
        ]


def lies(path: dict[str, Any]) -> bool:
    return bool(path["loss"]) or (path["rtt_ms"] or 0.0) > SLOWEST_MS


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("test-honest-numbers") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        near, far = (
            world.router(f"{name}-nat", wan, f"203.0.113.{30 + n}", lan=f"192.168.{n}.0/24", kind="symmetric")
            for n, name in ((7, "near"), (8, "far"))
        )
        world.host("near", near.lan, "192.168.7.10")
        world.host("far", far.lan, "192.168.8.10")
        yield Net(world, Cluster.without_ray(head, []), {"near": near, "far": far})


def test_right_after_a_join_nothing_is_lost(net: Net) -> None:
    """The node is online, as the others see it, two seconds before its tunnel is there."""
    head, joined = net.cluster.head, [net.cluster.head]
    for name in ("near", "far"):
        token, worker, router = net.cluster.answers["head"]["token"], net.worker(name), net.routers[name].host
        router.run(["nft", "-f", "-"], stdin=NO_UDP)
        join = worker.popen(["meshray", "join", token, "--no-ray", "--json"], name="join")
        net.world.wait_until(lambda n=name: n in net.online(), 20, f"{name} to be online")  # type: ignore[misc]
        time.sleep(2)
        router.run(["nft", "delete", "table", "ip", "late"])
        assert join.wait(30) == 0, join.output
        net.cluster.answers[name] = json.loads(next(line for line in join.output.splitlines() if line.startswith("{")))
        joined.append(worker)
        end = time.monotonic() + 12
        while time.monotonic() < end:
            wrong = net.lost(*joined)
            assert not wrong, wrong
            time.sleep(0.3)
    assert not net.wrong(*joined)
    assert not net.warnings(head, *joined[1:])


def test_a_past_gap_is_forgotten(net: Net) -> None:
    """On a busy machine a probe may really come late; numbers that lie do so after each gap."""
    hosts = (net.cluster.head, net.worker("near"), net.worker("far"))
    seen: list[str] = []
    for _ in range(GAPS):
        net.world.wait_until(lambda: not net.wrong(*hosts), 30, "a mesh without fault")
        away(net.routers["near"], GAP_S)
        wrong = net.wrong_after_a_gap(*hosts)
        if not wrong:
            return
        seen += wrong
    pytest.fail("\n".join(seen))
