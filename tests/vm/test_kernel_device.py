"""The kernel device of meshray in two network namespaces; the oracle is `wg`, `ip -json` and `ping`.

Each host is a namespace and one thread that lives in it: netlink sockets belong to the namespace of the thread that
opens them, so everything runs in this one process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import pytest

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.address import Endpoint
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.wireguard.config import DeviceConfig, DeviceState, PeerConfig
from meshray.wireguard.device import Device
from meshray.wireguard.open import check_available, open_device
from meshray.wireguard.plan import Step, plan

NAME = "meshray0"
PORT = 51888
PSK = PresharedKey(os.urandom(32))
HUB = IPv4Network("10.99.0.0/16")

T = TypeVar("T")


@dataclass
class Host:
    """One namespace, the device in it, its key and its thread."""

    namespace: str
    key: PrivateKey
    home: Home
    thread: ThreadPoolExecutor

    def do(self, work: Callable[[], T]) -> T:
        return self.thread.submit(work).result(60)

    def run(self, *argv: str, check: bool = True) -> str:
        inside = ["ip", "netns", "exec", self.namespace, *argv]
        return subprocess.run(inside, check=check, capture_output=True, text=True, timeout=60).stdout

    def device(self) -> Device:
        return self.do(lambda: open_device(NAME, self.home, {"MESHRAY_WIREGUARD": "kernel"}))

    def read(self) -> DeviceState | None:
        return self.do(self.device().read)

    def apply(self, desired: DeviceConfig) -> tuple[Step, ...]:
        device = self.device()
        steps = plan(self.do(device.read), desired)
        self.do(lambda: device.apply(steps))
        return steps

    def dump(self) -> list[list[str]]:
        return [line.split("\t") for line in self.run("wg", "show", NAME, "dump").splitlines()]

    def pings(self, address: str) -> bool:
        return " 0% packet loss" in self.run("ping", "-c", "2", "-i", "0.3", "-W", "5", address, check=False)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    made = [_host(f"device-{number}", tmp_path / str(number)) for number in (1, 2)]
    one, two = made
    try:
        cable = ["ip", "link", "add", "wan", "netns", one.namespace, "type", "veth", "peer", "wan"]
        subprocess.run([*cable, "netns", two.namespace], check=True, timeout=30)
        for number, host in enumerate(made, 1):
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "address", "add", f"192.0.2.{number}/24", "dev", "wan")
            host.run("ip", "link", "set", "wan", "up")
        yield one, two
    finally:
        for host in made:
            host.thread.shutdown()
            subprocess.run(["ip", "netns", "del", host.namespace], check=True, timeout=30)


def _host(namespace: str, folder: Path) -> Host:
    from pyroute2.netns import setns

    subprocess.run(["ip", "netns", "add", namespace], check=True, timeout=30)
    thread = ThreadPoolExecutor(1, initializer=setns, initargs=(namespace,))
    return Host(namespace, PrivateKey.generate(), Home(folder, folder / "run"), thread)


def config(own: Host, other: Host, **changes: Any) -> DeviceConfig:
    number = int(own.namespace[-1])
    there = Endpoint(f"192.0.2.{3 - number}", PORT)
    peer = replace(PeerConfig(other.key.public(), frozenset([HUB]), PSK, there, 20), **changes)
    addresses = (IPv4Interface(f"10.99.0.{number}/16"), IPv4Interface(f"10.99.128.{number}/32"))
    return DeviceConfig(own.key, PORT, addresses, 1380, {peer.public_key: peer})


def test_two_devices_talk_and_every_tool_agrees(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    assert one.read() is None
    assert str(one.apply(config(one, two))[0]) == "create the device"
    two.apply(config(two, one))
    assert one.pings("10.99.0.2")
    assert two.pings("10.99.128.1")
    for own, other in ((one, two), (two, one)):
        state = own.read()
        assert state is not None
        device, peer = own.dump()
        assert device[:3] == [own.key.reveal(), str(own.key.public()), str(PORT)]
        assert (state.private_key, state.listen_port, state.mtu, state.up) == (own.key, PORT, 1380, True)
        seen = state.peers[other.key.public()]
        assert peer[:4] == [str(other.key.public()), PSK.reveal(), str(seen.config.endpoint), str(HUB)]
        assert seen.config == config(own, other).peers[other.key.public()]
        assert seen.last_handshake is not None
        assert int(peer[4]) == int(seen.last_handshake) > time.time() - 120
        assert 0 < seen.rx_bytes <= int(peer[5])
        assert 0 < seen.tx_bytes <= int(peer[6])
        link = json.loads(own.run("ip", "-json", "-4", "-d", "address", "show", "dev", NAME))[0]
        assert link["linkinfo"]["info_kind"] == "wireguard"
        shown = {f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"]}
        assert shown == {str(address) for address in state.addresses}
        assert own.apply(config(own, other)) == ()


def test_moving_allowed_ips_between_peers(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    two.apply(config(two, one))
    probe, direct = IPv4Network("10.99.128.2/32"), IPv4Network("10.99.0.2/32")
    far = PublicKey(PrivateKey.generate().public().raw)
    hub = PeerConfig(far, frozenset([HUB]), endpoint=Endpoint("2001:db8::9", PORT))
    probing = config(one, two, allowed_ips=frozenset([probe]))
    peer = probing.peers[two.key.public()]
    probing = replace(probing, peers={peer.public_key: peer, far: hub})
    one.apply(probing)
    assert one.apply(probing) == ()
    assert one.pings("10.99.128.2")
    assert not one.pings("10.99.0.2")

    moved = replace(probing, peers={peer.public_key: replace(peer, allowed_ips=frozenset([probe, direct])), far: hub})
    assert len(one.apply(moved)) == 1
    assert one.pings("10.99.0.2")

    back = replace(probing, peers={peer.public_key: peer, far: replace(hub, allowed_ips=frozenset([HUB, direct]))})
    assert len(one.apply(back)) == 1
    assert one.apply(back) == ()
    allowed = {line[0]: set(line[3].split(",")) for line in one.dump()[1:]}
    assert allowed == {str(peer.public_key): {str(probe)}, str(far): {str(HUB), str(direct)}}


def test_changes_of_everything_converge(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    one.apply(config(one, two))
    plain = config(one, two, preshared_key=None, keepalive_s=0, allowed_ips=frozenset())
    ten = tuple(IPv4Interface(f"10.99.0.{number}/16") for number in (8, 9))
    other = replace(plain, private_key=PrivateKey.generate(), listen_port=PORT + 1, mtu=1280, addresses=ten)
    one.apply(other)
    assert one.apply(other) == ()
    device, peer = one.dump()
    assert (device[0], int(device[2])) == (other.private_key.reveal(), PORT + 1)
    assert (peer[1], peer[3], peer[7]) == ("(none)", "(none)", "off")
    # The primary is removed, and would take its secondary along.
    fewer = replace(other, addresses=ten[1:], peers={})
    one.apply(fewer)
    assert one.apply(fewer) == ()
    assert len(one.dump()) == 1


def test_many_peers_and_many_allowed_ips_come_back_whole(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    ranges = iter(IPv4Network("10.64.0.0/10").subnets(new_prefix=28))
    # More than one netlink message can hold, in peers and in the allowed IPs of one peer.
    sizes = [1000, *[3] * 120]
    keys = [PublicKey(os.urandom(32)) for _ in sizes]
    peers = {
        key: PeerConfig(key, frozenset(next(ranges) for _ in range(size)), keepalive_s=20)
        for key, size in zip(keys, sizes, strict=True)
    }
    many = replace(config(one, two), addresses=(), peers=peers)
    one.apply(many)
    assert one.apply(many) == ()
    # Another change leaves every address range unchanged.
    slower = {key: replace(peers[key], keepalive_s=25) for key in keys[:5]}
    changed = replace(many, peers={**peers, **slower})
    assert len(one.apply(changed)) == len(slower)
    assert one.apply(changed) == ()


def test_a_peer_without_endpoint_keeps_the_learnt_one(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    one.apply(config(one, two, endpoint=None))
    two.apply(config(two, one))
    assert two.pings("10.99.0.1")
    state = one.read()
    assert state is not None
    assert state.peers[two.key.public()].config.endpoint == Endpoint("192.0.2.2", PORT)
    assert one.apply(config(one, two, endpoint=None)) == ()


def test_remove_leaves_nothing_and_foreign_is_left_alone(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    one.apply(config(one, two))
    one.do(one.device().remove)
    one.do(one.device().remove)
    assert one.read() is None
    assert {link["ifname"] for link in json.loads(one.run("ip", "-json", "link"))} == {"lo", "wan"}

    # Created by hand, or by a meshray of another home: that makes no difference.
    one.run("ip", "link", "add", NAME, "type", "wireguard")
    device = one.device()
    with pytest.raises(MeshrayError) as refused:
        one.do(device.read)
    assert refused.value.code == "foreign_interface"
    with pytest.raises(MeshrayError) as refused:
        one.do(lambda: device.apply(plan(None, config(one, two))))
    assert refused.value.code == "foreign_interface"
    one.do(device.remove)
    assert NAME in one.run("ip", "link")


def test_a_port_in_use_is_named(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    other = one.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with other:
        other.bind(("", PORT))
        for _ in range(2):
            with pytest.raises(MeshrayError, match=str(PORT)) as refused:
                one.apply(config(one, two))
            assert refused.value.code == "port_in_use"
    one.apply(config(one, two))
    assert one.apply(config(one, two)) == ()


def test_the_availability_probe_leaves_nothing(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    assert one.do(lambda: check_available({})) == "kernel"
    assert {link["ifname"] for link in json.loads(one.run("ip", "-json", "link"))} == {"lo", "wan"}
