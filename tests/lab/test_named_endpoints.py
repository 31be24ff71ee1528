"""A node that gives its endpoint by name: `join --endpoint vm.example.org:51888`.

             switch wan 203.0.113.0/24
      ┌─────────────┼──────────────┐
     hub          walled          nat  vm.example.org, forwards UDP port 51888
203.0.113.10  203.0.113.20    203.0.113.30
              drops all            │ switch nat-lan 192.168.7.0/24
              inbound             vm
                              192.168.7.10
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import Host
from tests.lab.test_main_job import wireguard_peers
from tests.lab.waiting import wait_until
from tests.lab.world import World

NAME, BEHIND = "vm.example.org", "203.0.113.30"
#: The time from the join to a direct path.
DIRECT_S = 60
#: A removed node is in no device after this.
REMOVED_S = 5
#: Every port behind this NAT changes with the destination, except for the forwarded one.
FORWARD = """
table ip forwarded {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        iifname "wan" udp dport 51888 dnat to 192.168.7.10:51888
    }
}
insert rule inet router forward udp dport 51888 accept
"""


@dataclass
class Place:
    cluster: Cluster
    hub: Host
    walled: Host
    vm: Host


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with World("named-endpoints") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        hub = world.host("hub", wan, "203.0.113.10")
        walled = world.host("walled", wan, "203.0.113.20")
        walled.drop_inbound()
        nat = world.router("nat", wan, BEHIND, lan="192.168.7.0/24", kind="symmetric")
        nat.host.run(["nft", "-f", "-"], stdin=FORWARD)
        vm = world.host("vm", nat.lan, "192.168.7.10")
        for host in (hub, walled, vm):
            with host.path("/etc/hosts").open("a") as hosts:
                hosts.write(f"{BEHIND} {NAME}\n")
        cluster = Cluster.without_ray(hub, [walled])
        answer = cluster.meshray(vm, "join", cluster.answers["hub"]["token"], "--no-ray", "--endpoint", f"{NAME}:51888")
        cluster.answers["vm"] = answer
        yield Place(cluster, hub, walled, vm)


def test_every_pair_works_and_the_direct_path_uses_the_name(place: Place) -> None:
    def path() -> dict[str, object]:
        nodes = place.cluster.meshray(place.walled, "status", check=False)["nodes"]
        return next(node["path"] for node in nodes if node["name"] == "vm")

    wait_until(lambda: path()["kind"] == "direct", DIRECT_S, "a direct way to the name", evidence=lambda: str(path()))
    assert path()["endpoint"] == f"{BEHIND}:51888"
    ips = {name: answer["node"]["ip"] for name, answer in place.cluster.answers.items()}
    for host in place.cluster.hosts:
        for name, ip in ips.items():
            assert host.run(["ping", "-c", "2", "-W", "2", ip], check=False).returncode == 0, f"{host.name} to {name}"


def test_unresolvable_names_do_not_keep_a_removed_node(place: Place) -> None:
    place.cluster.meshray(place.vm, "leave", "--yes")
    names = [word for n in range(8) for word in ("--endpoint", f"n{n}.nowhere.example:51888")]
    token = place.cluster.answers["hub"]["token"]
    place.cluster.meshray(place.vm, "join", token, "--no-ray", *names)
    before = len(wireguard_peers(place.hub))
    assert before == 2
    place.hub.run(["meshray", "node", "rm", "walled", "--yes"])
    wait_until(lambda: len(wireguard_peers(place.hub)) == 1, REMOVED_S, "the removed key to leave the hub's device")
