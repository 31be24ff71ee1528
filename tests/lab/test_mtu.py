"""Underlays that carry less than they should, with plain wireguard-go; the oracles are TCP, `ip` and /proc/net/snmp.

one ─── left ═══ 1280 bytes ═══ right ─── two
192.0.2.0/24  198.51.100.0/24   203.0.113.0/24
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from meshray.model.keys import PrivateKey
from tests.lab.host import REPOSITORY, Host, HostProcess
from tests.lab.waiting import wait_until
from tests.lab.world import World

#: Answers small packets to any request, and reads TCP until the end of the data.
FAR = """
import asyncio, socket
class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport): self.transport = transport
    def datagram_received(self, data, addr): self.transport.sendto(data[:4], addr)
async def take(reader, writer):
    while await reader.read(65536): pass
    writer.write(b"all"); writer.close()
async def main():
    await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("10.99.0.2", 7000))
    await asyncio.start_server(take, "10.99.0.2", 7000)
    print("ready", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
SEARCH = """
import asyncio, socket, struct, sys
from meshray.agent.paths.mtu import underlay_reports, dont_fragment, find_mtu
from meshray.model.address import Endpoint
async def main():
    loop = asyncio.get_running_loop()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    dont_fragment(udp)
    udp.connect(("10.99.0.2", 7000))
    number = 0
    async def probe(size):
        nonlocal number
        number += 1
        mark = struct.pack("=I", number)
        udp.send(mark + bytes(size - 32))
        try:
            while await asyncio.wait_for(loop.sock_recv(udp, 100), 0.3) != mark: pass
            return True
        except asyncio.TimeoutError:
            return False
    with underlay_reports(Endpoint.parse(sys.argv[1])) as underlay:
        print(await find_mtu(probe, underlay))
asyncio.run(main())
"""
SEND = """
import socket
with socket.create_connection(("10.99.0.2", 7000), timeout=4) as tcp:
    tcp.sendall(bytes(1 << 20))
    tcp.shutdown(socket.SHUT_WR)
    assert tcp.recv(10) == b"all"
"""
ROUTE = """
import json, sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from meshray.model.keys import PrivateKey
from meshray.wireguard.config import MESHRAY_PROTOCOL, DeviceConfig, DeviceState, Route
from meshray.wireguard.interface import open_interfaces
from meshray.wireguard.plan import plan
mtu, own, peer = int(sys.argv[1]), IPv4Address("10.99.0.1"), IPv4Network("10.99.0.2/32")
key = PrivateKey(bytes([1]) * 32)
with open_interfaces() as interfaces:
    interface = interfaces.find("wg0")
    addresses = interfaces.addresses(interface)
    state = DeviceState(key, 51888, addresses, interface.mtu, True, {}, interfaces.routes(interface, addresses))
    narrow = (Route(peer, own, mtu, MESHRAY_PROTOCOL),) if mtu else ()
    wanted = DeviceConfig(key, 51888, addresses, interface.mtu, {}, (Route(IPv4Network("10.99.0.0/16"), own), *narrow))
    steps = plan(state, wanted)
    for step in steps:
        interfaces.apply(interface, step)
    state = replace(state, routes=interfaces.routes(interface, addresses))
    assert plan(state, wanted) == ()
print(json.dumps([str(step) for step in steps]))
"""
EAT_ICMP = """
table inet eater {
    chain output {
        type filter hook output priority 0; policy accept;
        icmp type destination-unreachable drop
    }
}
"""
KEYS = (PrivateKey.generate(), PrivateKey.generate())


@dataclass
class Narrow:
    one: Host
    two: Host
    routers: tuple[Host, Host]

    def python(self, code: str, *args: str) -> str:
        return self.one.run(["python", "-c", code, *args], env={"PYTHONPATH": str(REPOSITORY)}).stdout.strip()

    def transfer_works(self) -> bool:
        return self.one.run(["python", "-c", SEND], check=False, deadline_s=30).returncode == 0

    def fragments(self) -> int:
        names, numbers = (
            line.split()
            for line in self.one.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
            if line.startswith("Ip:")
        )
        return int(numbers[names.index("FragCreates")])

    def eat_icmp(self) -> None:
        for router in self.routers:
            router.run(["nft", "-f", "-"], stdin=EAT_ICMP)


def narrow(world: World) -> Narrow:
    left_lan = world.switch("left-lan", "192.0.2.0/24", gateway="192.0.2.1")
    middle = world.switch("middle", "198.51.100.0/24")
    right_lan = world.switch("right-lan", "203.0.113.0/24", gateway="203.0.113.1")
    one, two = world.host("one", left_lan, "192.0.2.10"), world.host("two", right_lan, "203.0.113.10")
    routers = world.host("left", middle, "198.51.100.1"), world.host("right", middle, "198.51.100.2")
    world.connect(routers[0], left_lan, "192.0.2.1", interface="lan")
    world.connect(routers[1], right_lan, "203.0.113.1", interface="lan")
    for router, route in zip(
        routers, ("203.0.113.0/24 via 198.51.100.2", "192.0.2.0/24 via 198.51.100.1"), strict=True
    ):
        router.shell(
            "ip route del default || true; echo 1 > /proc/sys/net/ipv4/ip_forward;"
            f"ip link set eth0 mtu 1280; ip route add {route}"
        )
    return Narrow(one, two, routers)


def tunnel(host: Host, own: int, endpoint: str) -> HostProcess:
    engine = host.popen(["wireguard-go", "-f", "wg0"])
    host.wait_until(lambda: host.run(["wg", "show", "wg0"], check=False).returncode == 0, 10, "wireguard-go")
    host.shell(
        f"echo {KEYS[own].reveal()} > /run/key;"
        f"wg set wg0 private-key /run/key listen-port 51888 peer {KEYS[1 - own].public()} endpoint {endpoint}"
        " allowed-ips 10.99.0.0/16;"
        f"ip address add 10.99.128.{own + 1}/32 dev wg0; ip address add 10.99.0.{own + 1}/16 dev wg0;"
        "ip link set wg0 mtu 1420 up"
    )
    return engine


@pytest.fixture
def underlay(request: pytest.FixtureRequest) -> Iterator[Narrow]:
    with World("test-mtu") as world:
        hosts = narrow(world)
        tunnel(hosts.one, 0, "203.0.113.10:51888")
        tunnel(hosts.two, 1, "192.0.2.10:51888")
        assert hosts.one.can_reach("10.99.0.2")
        far = hosts.two.popen(["python", "-c", FAR])
        wait_until(lambda: "ready" in far.output, 10, "the far side")
        yield hosts


def test_an_underlay_of_1280_that_eats_icmp(underlay: Narrow) -> None:
    underlay.eat_icmp()
    assert not underlay.transfer_works()
    assert underlay.python(SEARCH, "203.0.113.10:51888") == "1200"
    first = "route 10.99.0.2/32 to the device, packets of at most 1200 bytes"
    assert json.loads(underlay.python(ROUTE, "1200")) == [first]
    (route,) = underlay.one.run(["ip", "-json", "route", "show", "10.99.0.2/32"]).json()
    # Not the probe address, although it existed first.
    assert (route["dev"], route["prefsrc"], route["metrics"]) == ("wg0", "10.99.0.1", [{"mtu": 1200}])
    assert underlay.transfer_works()

    # Found again with the route in place; a repetition changes nothing; and back.
    assert underlay.python(SEARCH, "203.0.113.10:51888") == "1200"
    assert json.loads(underlay.python(ROUTE, "1200")) == []
    assert json.loads(underlay.python(ROUTE, "1280")) == [first.replace("1200", "1280")]
    assert json.loads(underlay.python(ROUTE, "1200")) == [first]
    assert json.loads(underlay.python(ROUTE, "0")) == ["remove the route 10.99.0.2/32"]
    assert json.loads(underlay.python(ROUTE, "0")) == []
    assert underlay.one.run(["ip", "-json", "route", "show", "10.99.0.2/32"]).stdout.strip() in ("", "[]", "[ ]")


def test_an_underlay_with_mtu_1280_and_icmp_works(underlay: Narrow) -> None:
    assert underlay.python(SEARCH, "203.0.113.10:51888") == "1200"
    underlay.python(ROUTE, "1200")
    before = underlay.fragments()
    assert underlay.transfer_works()
    assert underlay.fragments() == before
