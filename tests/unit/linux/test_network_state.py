"""The kernel's messages as bytes, and their meaning for this machine's network."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.linux.network_monitor import SleepWatch
from meshray.linux.network_state import NetworkState
from meshray.linux.rtnetlink import RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE

ETH, WLAN, OWN, VETH = 2, 3, 9, 12
UP, DOWN = 0x1043, 0x1003


def message(kind: int, body: bytes, **attributes: bytes | int) -> bytes:
    numbers = {"dst": 1, "address": 1, "local": 2, "name": 3, "oif": 4, "gateway": 5, "metric": 6, "flags": 8}
    for name, value in attributes.items():
        raw = struct.pack("=I", value) if isinstance(value, int) else value
        body += struct.pack("=HH", 4 + len(raw), numbers[name]) + raw + bytes(-len(raw) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def link(index: int, name: str, flags: int = UP, kind: int = RTM_NEWLINK, family: int = 0) -> bytes:
    return message(kind, struct.pack("=BxHiII", family, 1, index, flags, 0), name=name.encode() + b"\0")


def address(index: int, text: str, kind: int = RTM_NEWADDR, flags: int = 0x80) -> bytes:
    ip = ip_address(text)
    body = struct.pack("=BBBBI", 2 if ip.version == 4 else 10, 24, flags & 0xFF, 0, index)
    return message(kind, body, address=ip.packed, flags=flags)


def route(
    index: int, gateway: str, kind: int = RTM_NEWROUTE, length: int = 0, metric: int = 100, dst: bytes = b""
) -> bytes:
    ip = ip_address(gateway)
    body = struct.pack("=BBBBBBBBI", 2 if ip.version == 4 else 10, length, 0, 0, 254, 16, 0, 1, 0)
    return message(kind, body, oif=index, gateway=ip.packed, metric=metric, dst=dst)


@pytest.fixture
def state() -> NetworkState:
    state = NetworkState("meshray0")
    state.feed(link(ETH, "eth0") + link(OWN, "meshray0") + link(VETH, "veth12ab") + link(1, "lo"))
    state.feed(address(ETH, "192.168.1.20") + route(ETH, "192.168.1.1"))
    return state


def test_another_wlan(state: NetworkState) -> None:
    assert state.feed(link(WLAN, "wlan0", DOWN)) == []
    assert state.feed(link(WLAN, "wlan0", UP)) == ["wlan0 is up"]
    assert state.feed(address(WLAN, "192.168.7.20") + route(WLAN, "192.168.7.1", metric=600)) == [
        "new address 192.168.7.20 on wlan0",
        "new default route via wlan0",
    ]
    assert state.feed(route(WLAN, "192.168.7.1", RTM_DELROUTE, metric=600)) == ["lost default route via wlan0"]
    assert state.feed(address(WLAN, "192.168.7.20", RTM_DELADDR)) == ["lost address 192.168.7.20 on wlan0"]
    assert state.feed(link(WLAN, "wlan0", DOWN, RTM_DELLINK)) == ["wlan0 is down"]


def test_a_repeated_report_is_not_a_change(state: NetworkState) -> None:
    again = (address(ETH, "192.168.1.20"), route(ETH, "192.168.1.1"), link(ETH, "eth0"), address(ETH, "2001:db8::7"))
    assert state.feed(b"".join(again)) == ["new address 2001:db8::7 on eth0"]
    # A router advertisement renews the address's lifetime again and again.
    assert state.feed(b"".join(again)) == []


def test_an_address_counts_once_it_can_be_used(state: NetworkState) -> None:
    assert state.feed(address(ETH, "2001:db8::7", flags=0x40)) == []
    assert state.feed(address(ETH, "2001:db8::7", flags=0x80)) == ["new address 2001:db8::7 on eth0"]
    assert state.feed(address(ETH, "2001:db8::7", flags=0x20)) == ["lost address 2001:db8::7 on eth0"]


@pytest.mark.parametrize(
    "noise",
    [
        link(OWN, "meshray0", DOWN),
        address(OWN, "10.99.128.7"),
        route(OWN, "10.99.0.1"),
        link(VETH, "veth12ab", DOWN),
        link(VETH, "veth12ab", DOWN, RTM_DELLINK),
        address(VETH, "172.17.0.1"),
        address(ETH, "fe80::1"),
        address(1, "127.0.0.2"),
        route(ETH, "192.168.1.7", length=24, dst=b"\x0a\x01\x02\x00"),
        link(ETH, "eth0", DOWN, RTM_DELLINK, family=7),
        address(77, "192.0.2.7", RTM_DELADDR),
        struct.pack("=IHHII", 17, RTM_NEWADDR, 0, 0, 0) + b"\x02",
    ],
)
def test_updates_that_do_not_change_the_path_are_ignored(state: NetworkState, noise: bytes) -> None:
    assert state.feed(noise) == []


def test_a_lost_cable_drops_routes_silently(state: NetworkState) -> None:
    assert state.feed(link(ETH, "eth0", DOWN)) == ["eth0 is down"]
    assert state.feed(link(ETH, "eth0") + route(ETH, "192.168.1.1")) == ["eth0 is up", "new default route via eth0"]


def test_a_route_that_is_replaced_and_put_back(state: NetworkState) -> None:
    for gateway in ("192.168.1.254", "192.168.1.1"):
        assert state.feed(route(ETH, gateway)) == ["new default route via eth0"]


def test_ipv6_routers_are_connected_side_by_side(state: NetworkState) -> None:
    both = route(ETH, "fe80::1") + route(ETH, "fe80::2")
    assert state.feed(both) == ["new default route via eth0"] * 2
    assert state.feed(both) == []
    assert state.feed(route(ETH, "fe80::1", RTM_DELROUTE)) == ["lost default route via eth0"]


def test_a_vpn_takes_the_default_route_in_halves(state: NetworkState) -> None:
    halves = route(ETH, "192.168.1.9", length=1) + route(ETH, "192.168.1.9", length=1, dst=b"\x80\0\0\0")
    assert state.feed(halves) == ["new default route via eth0"] * 2


@given(st.binary(max_size=200), st.sampled_from([RTM_NEWLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELLINK]))
def test_garbage_never_breaks_it(garbage: bytes, kind: int) -> None:
    state = NetworkState("meshray0")
    state.feed(garbage)
    state.feed(message(kind, garbage))


def test_sleep_is_the_lead_of_the_boot_clock() -> None:
    watch = SleepWatch(1000.0, 900.0)
    assert watch.slept_s(1002.0, 902.0001) == 0.0
    assert watch.slept_s(4604.0, 904.0) == pytest.approx(3600, abs=0.01)
    assert watch.slept_s(4606.0, 906.0) == 0.0
