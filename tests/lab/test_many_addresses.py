"""A head with hundreds of addresses: a host of containers and virtual networks.

switch wan 203.0.113.0/24
     ┌──────┴──────┐
   head          worker
203.0.113.10   203.0.113.20     head: 300 more addresses of IPv4, 100 of IPv6
"""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.world import World


def test_a_head_with_hundreds_of_addresses_is_found_by_its_tokens() -> None:
    with World("many-addresses") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        first, second = (world.host(name, wan, f"203.0.113.2{number}") for number, name in enumerate(("one", "two")))
        lines = [f"address add 172.20.{number // 200}.{number % 200 + 1}/32 dev eth0" for number in range(300)]
        lines += [f"address add 2001:db8:7::{number + 1:x}/128 dev eth0 nodad" for number in range(100)]
        head.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")
        cluster = Cluster.without_ray(head, [first])
        assert first.can_reach(cluster.ip(head), deadline_s=5)
        later = head.run(["meshray", "token", "create", "--json"]).json()["token"]
        cluster.answers["two"] = cluster.meshray(second, "join", later, "--no-ray")
        assert second.can_reach(cluster.ip(first), deadline_s=5)
        assert cluster.meshray(head, "status")["problems"] == []
        many = [word for number in range(17) for word in ("--advertise", f"198.51.100.{number + 1}")]
        third = world.host("three", wan, "203.0.113.29")
        refused = cluster.meshray(third, "init", "--no-ray", *many, check=False)
        assert refused["error"]["code"] == "too_many_addresses"
        assert not third.path("/var/lib/meshray/node.json").exists()
