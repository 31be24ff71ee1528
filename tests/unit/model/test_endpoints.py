from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.errors import UsageError
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.endpoints import MAX_ENDPOINTS, choose_endpoints, reachable_ip, require_few
from meshray.model.token import MAX_TOKEN_CHARACTERS, Token

PORT = 51888
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(lambda ip: Endpoint(str(ip), PORT))


def many(count: int) -> list[Endpoint]:
    """Return private IPv4 addresses first, as the interfaces of a host with containers have them."""
    private = [Endpoint(str(IPv4Address("10.1.0.1") + number), PORT) for number in range(count)]
    public = [Endpoint(str(IPv6Address("2a00:1450::1") + number), PORT) for number in range(count)]
    return [*private, *public, Endpoint("8.8.4.4", PORT)]


def test_every_kind_of_address_keeps_its_place() -> None:
    chosen = choose_endpoints([Endpoint("head.example.org", PORT)], many(300))
    assert len(chosen) == MAX_ENDPOINTS
    assert chosen[:2] == (Endpoint("head.example.org", PORT), Endpoint("8.8.4.4", PORT))
    assert sum(endpoint.host.startswith("10.1.") for endpoint in chosen) >= 4
    assert sum(":" in endpoint.host for endpoint in chosen) >= 4


def test_a_few_addresses_are_all_kept() -> None:
    few = [Endpoint("10.1.0.1", PORT), Endpoint("8.8.4.4", PORT)]
    assert choose_endpoints([], few) == (few[1], few[0])


def test_more_than_others_take_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="--endpoint was given 17 addresses"):
        require_few(many(300)[: MAX_ENDPOINTS + 1], "--endpoint")


@given(st.lists(ADDRESSES, max_size=MAX_ENDPOINTS), st.lists(ADDRESSES, max_size=400))
def test_a_token_with_any_endpoints_can_be_read(own: list[Endpoint], found: list[Endpoint]) -> None:
    chosen = choose_endpoints(own, found)
    assert len(chosen) <= MAX_ENDPOINTS
    assert set(own) <= set(chosen)
    assert bool(chosen) == bool([*own, *found])
    if chosen:
        text = Token("0" * 16, chosen, bytes(32), "ab" * 4, "s" * 32).encode()
        assert len(text) < MAX_TOKEN_CHARACTERS
        assert Token.parse(text).coordinators == chosen


def test_the_longest_names_fit_as_well() -> None:
    names = tuple(
        Endpoint(f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 50}{number:02}", PORT) for number in range(MAX_ENDPOINTS)
    )
    text = Token("0" * 16, choose_endpoints(names, []), bytes(32), "ab" * 4, "s" * 32).encode()
    assert Token.parse(text).coordinators == names


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("10.0.0.7", "10.0.0.7"),
        ("2001:DB8::7", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("64:ff9b::192.0.2.7", "64:ff9b::c000:207"),
        ("240.0.0.7", "240.0.0.7"),
        ("10.99.0.7", None),
        ("127.0.0.1", None),
        ("0.1.2.3", None),
        ("169.254.169.254", None),
        ("224.0.0.1", None),
        ("255.255.255.255", None),
        ("::", None),
        ("::1", None),
        ("ff02::1", None),
        ("fe80::1", None),
        ("2001:db8::7%eth0", None),
        ("::ffff:127.0.0.1", None),
        ("64:ff9b::169.254.169.254", None),
        ("2002:7f00:1::", None),
    ],
)
def test_addresses_of_other_machines_are_recognized(host: str, plain: str | None) -> None:
    found = reachable_ip(ip_address(host), OverlayNetwork.parse("10.99.0.0/16"))
    assert (str(found) if found is not None else None) == plain


def test_a_loopback_address_counts_only_on_request() -> None:
    network = OverlayNetwork.parse("10.99.0.0/16")
    assert reachable_ip(ip_address("127.0.0.1"), network, loopback=True) == ip_address("127.0.0.1")
