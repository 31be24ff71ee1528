"""Two hubs: a pair without a direct path uses one of them, and the other when that one dies.

            switch wan 192.88.99.0/24
  ┌────────────┬─────────────┼──────────────┐
 head        second         nat1           nat2     symmetric NATs: no direct path
.10 hub     .11 --hub        │              │
                            one            two
                        192.168.31.10  192.168.32.10
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.lab.cluster import Cluster
from tests.lab.doctoring import Doctor, until_well
from tests.lab.host import Host
from tests.lab.world import World

#: Three lost probes, two seconds apart, and the report of it to the other side.
TAKES_OVER_S = 30
DEAF = "table ip dead { chain input { type filter hook input priority raw; udp dport 51888 drop; }; }"
NO_IPV4 = "table ip no_v4 {{ chain input {{ type filter hook input priority raw; ip saddr {} drop; }}; }}"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    with World("test-hubs") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        head, second = world.host("head", wan, "192.88.99.10"), world.host("second", wan, "192.88.99.11")
        nats = [
            world.router(f"nat{n}", wan, f"192.88.99.{n}", lan=f"192.168.{n}.0/24", kind="symmetric") for n in (31, 32)
        ]
        one, two = world.host("one", nats[0].lan, "192.168.31.10"), world.host("two", nats[1].lan, "192.168.32.10")
        cluster = Cluster(head, (second, one, two))
        cluster.answers["head"] = cluster.meshray(head, "init", "--no-ray")
        token = cluster.answers["head"]["token"]
        as_hub = ("--hub", "--endpoint", f"{second.address}:51888")
        for_hubs = head.run(["meshray", "token", "create", "--hub"]).stdout.strip()
        cluster.answers["second"] = cluster.meshray(second, "join", for_hubs, "--no-ray", *as_hub)
        for worker in (one, two):
            cluster.answers[worker.name] = cluster.meshray(worker, "join", token, "--no-ray")
        yield cluster


def hub_of(host: Host, ip: str) -> str:
    """Return the underlay address to which the host's WireGuard sends packets for this overlay address."""
    peers = [line.split("\t") for line in host.run(["wg", "show", "meshray0", "dump"]).stdout.splitlines()[1:]]
    endpoints = {network: peer[2] for peer in peers for network in peer[3].split(",")}
    return endpoints.get(f"{ip}/32", endpoints.get("10.99.0.0/16", "")).rpartition(":")[0]


def test_every_node_has_a_tunnel_with_both_hubs(mesh: Cluster) -> None:
    _, one, two = mesh.workers
    for host in (one, two):
        for hub in (mesh.head, mesh.workers[0]):
            host.wait_until(partial(host.can_reach, mesh.ip(hub), 2), 20, f"{host} → {hub}")


def test_both_sides_of_the_pair_use_the_same_hub(mesh: Cluster) -> None:
    _, one, two = mesh.workers

    def agree() -> bool:
        return bool(hub_of(one, mesh.ip(two))) and hub_of(one, mesh.ip(two)) == hub_of(two, mesh.ip(one))

    one.wait_until(agree, TAKES_OVER_S, "both sides to use one hub")
    one.wait_until(lambda: one.can_reach(mesh.ip(two), 2), 10, "the pair to talk")


def test_the_other_hub_takes_over(mesh: Cluster) -> None:
    second, one, two = mesh.workers
    hubs = {str(mesh.head.address): mesh.head, str(second.address): second}
    used = hub_of(one, mesh.ip(two))
    dead = hubs[used]
    dead.run(["nft", "-f", "-"], stdin=DEAF)
    try:
        one.wait_until(lambda: one.can_reach(mesh.ip(two), 2), TAKES_OVER_S, "the pair to talk by the other hub")
        assert hub_of(one, mesh.ip(two)) == hub_of(two, mesh.ip(one)) != used
    finally:
        dead.run(["nft", "delete", "table", "ip", "dead"])
    one.wait_until(lambda: one.can_reach(mesh.ip(two), 2), TAKES_OVER_S, "the pair to talk when both are back")


def test_the_doctor_finds_nothing_wrong(mesh: Cluster, doctor: Doctor) -> None:
    until_well(mesh.hosts)  # A hub was dead a moment ago.
    doctor.passes("two hubs, symmetric routers", *mesh.hosts)


def test_ipv6_is_a_direct_path_where_ipv4_is_none(doctor: Doctor) -> None:
    """Two nodes on one switch drop each other's IPv4, and have IPv6 addresses."""
    with World("test-ipv6") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        hub, a, b = (world.host(name, wan, f"192.88.99.{n}") for name, n in (("hub", 10), ("a", 21), ("b", 22)))
        for host, n, other in ((a, 21, b), (b, 22, a)):
            host.run(["ip", "address", "add", f"2001:4860:1::{n}/64", "dev", "eth0", "nodad"])
            host.run(["nft", "-f", "-"], stdin=NO_IPV4.format(other.address))
        cluster = Cluster.without_ray(hub, [a, b])

        def by_ipv6() -> bool:
            nodes = cluster.meshray(a, "status", check=False)["nodes"]
            path = next(node["path"] for node in nodes if node["name"] == "b")
            return bool(path["kind"] == "direct" and path["endpoint"].startswith("[2001:4860:1::22]"))

        a.wait_until(by_ipv6, 30, "the direct path over IPv6")
        assert a.can_reach(cluster.ip(b), 3)
        doctor.passes("IPv6 between two nodes that cannot talk by IPv4", *cluster.hosts)
