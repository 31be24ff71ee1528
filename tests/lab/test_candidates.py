"""The endpoints that a real host reports."""

from __future__ import annotations

import json

from tests.lab.host import REPOSITORY
from tests.lab.world import World

READ = """
import asyncio, json
from meshray.agent.paths.local_endpoints import read_endpoints
from meshray.model.address import OverlayNetwork
print(json.dumps([str(e) for e in asyncio.run(read_endpoints(51888, OverlayNetwork.parse("10.99.0.0/16")))]))
"""


def test_a_laptop_with_containers_two_networks_and_privacy_addresses() -> None:
    with World("test-candidates") as world:
        lan = world.switch("lan", "192.168.7.0/24")
        far = world.switch("far", "203.0.113.0/24", gateway="203.0.113.1")
        laptop = world.host("laptop", lan, "192.168.7.10")
        world.connect(laptop, far, "203.0.113.10", interface="eth1")
        laptop.shell(
            "ip link add docker0 type bridge; ip link set docker0 up; ip address add 172.17.0.1/16 dev docker0;"
            "ip link add meshray0 type bridge; ip link set meshray0 up; ip address add 10.99.0.7/16 dev meshray0;"
            "ip -6 address add fd00::7/64 dev eth0 nodad;"
            "echo 2 > /proc/sys/net/ipv6/conf/eth1/use_tempaddr;"
            "ip -6 address add 2001:db8::7/64 dev eth1 nodad mngtmpaddr; ip -6 route add default dev eth1"
        )

        def addresses() -> list[str]:
            entries = laptop.run(["ip", "-json", "-6", "address", "show", "dev", "eth1", "scope", "global"]).json()
            temporary = [item["local"] for item in entries[0]["addr_info"] if item.get("temporary")]
            tentative = any(item.get("tentative") for item in entries[0]["addr_info"])
            return temporary if not tentative else []

        (temporary,) = world.wait_until(addresses, 10, "a privacy address")
        read = laptop.run(["python", "-c", READ], env={"PYTHONPATH": str(REPOSITORY)}).stdout
        assert json.loads(read) == [
            "203.0.113.10:51888",
            "192.168.7.10:51888",
            f"[{temporary}]:51888",
            "[2001:db8::7]:51888",
        ]
