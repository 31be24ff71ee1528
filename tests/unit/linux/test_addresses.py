from __future__ import annotations

from ipaddress import ip_address

import pytest

from meshray.linux.addresses import InterfaceAddress, parse_address, reachable
from meshray.linux.netlink import attribute
from meshray.linux.rtnetlink import ADDRESS


def test_ipv4_comes_first_and_nothing_twice() -> None:
    found = reachable(
        [
            InterfaceAddress("eth0", ip_address("2001:db8::7")),
            InterfaceAddress("eth0", ip_address("192.168.1.20")),
            InterfaceAddress("eth1", ip_address("192.168.1.20")),
            InterfaceAddress("tailscale0", ip_address("100.100.1.2")),
            InterfaceAddress("br0", ip_address("10.1.2.3")),
        ]
    )
    assert [str(address) for address in found] == ["192.168.1.20", "100.100.1.2", "10.1.2.3", "2001:db8::7"]


@pytest.mark.parametrize(
    "useless",
    [
        InterfaceAddress("lo", ip_address("127.0.0.1")),
        InterfaceAddress("eth0", ip_address("169.254.3.4")),
        InterfaceAddress("eth0", ip_address("fe80::1")),
        InterfaceAddress("docker0", ip_address("172.17.0.1")),
        InterfaceAddress("br-0123456789ab", ip_address("172.18.0.1")),
        InterfaceAddress("virbr0", ip_address("192.168.122.1")),
        InterfaceAddress("meshray0", ip_address("10.99.0.1")),
        InterfaceAddress("eth0", ip_address("192.168.1.20"), is_up=False),
        InterfaceAddress("eth0", ip_address("2001:db8::7"), is_stable=False),
    ],
)
def test_unreachable_addresses_are_reported(useless: InterfaceAddress) -> None:
    assert reachable([useless]) == []


def test_an_address_message_of_the_kernel_is_decoded() -> None:
    links = {2: ("eth0", True)}
    own = attribute(1, ip_address("192.168.1.20").packed)
    fixed = ADDRESS.pack(2, 24, 0x80, 0, 2)
    assert parse_address(fixed + own, links) == InterfaceAddress("eth0", ip_address("192.168.1.20"))
    tentative = parse_address(fixed + own + attribute(8, 0xC0), links)
    assert tentative == InterfaceAddress("eth0", ip_address("192.168.1.20"), is_stable=False)
    assert parse_address(ADDRESS.pack(2, 24, 0, 0, 3) + own, links) is None
    six = ADDRESS.pack(10, 64, 0x80, 0, 2) + attribute(1, ip_address("2001:db8::7").packed)
    assert parse_address(six, links) == InterfaceAddress("eth0", ip_address("2001:db8::7"))
