from __future__ import annotations

from ipaddress import ip_address

from meshray.agent.paths.local_endpoints import MOST_PER_FAMILY, own_endpoints
from meshray.model.address import OverlayNetwork

NETWORK = OverlayNetwork.parse("10.99.0.0/16")


def endpoints(*addresses: str, preferred: tuple[str, ...] = ()) -> list[str]:
    found = own_endpoints(map(ip_address, addresses), 51888, NETWORK, map(ip_address, preferred))
    return [str(endpoint) for endpoint in found]


def test_ipv4_comes_first_and_in_each_family_the_one_it_sends_from() -> None:
    found = endpoints(
        "192.168.1.20", "10.1.2.3", "2001:db8::7", preferred=("10.1.2.3", "2001:db8::aaaa:bbbb:cccc:dddd")
    )
    assert found == [
        "10.1.2.3:51888",
        "192.168.1.20:51888",
        "[2001:db8::aaaa:bbbb:cccc:dddd]:51888",
        "[2001:db8::7]:51888",
    ]


def test_addresses_that_others_cannot_reach_are_not_reported() -> None:
    useless = ("10.99.0.7", "10.99.128.7", "127.0.0.1", "169.254.1.1", "::1", "fe80::1", "fd00::7", "fec0::1")
    assert endpoints(*useless, preferred=("10.99.0.7",)) == []


def test_a_machine_with_hundreds_of_addresses_reports_few() -> None:
    many = [f"192.0.2.{n}" for n in range(1, 200)] + [f"2001:db8::{n}" for n in range(1, 200)]
    assert len(endpoints(*many)) == 2 * MOST_PER_FAMILY
