"""Routes in the kernel's messages."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.linux.rtnetlink import ROUTE, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY
from meshray.wireguard.config import KERNEL_PROTOCOL, MESHRAY_PROTOCOL, Route, RouteState
from meshray.wireguard.routes import parse_route, route_body

OVERLAY, PEER, OWN = IPv4Network("10.99.0.0/16"), IPv4Network("10.99.0.7/32"), IPv4Address("10.99.0.2")
INDEX = 9


def attribute(kind: int, raw: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(raw), kind) + raw + bytes(-len(raw) % 4)


def body(
    destination: IPv4Network = OVERLAY,
    *,
    oif: int = INDEX,
    kind: int = 1,
    protocol: int = KERNEL_PROTOCOL,
    table: int = 254,
    tos: int = 0,
    more: bytes = b"",
) -> bytes:
    fixed = ROUTE.pack(2, destination.prefixlen, 0, tos, table, protocol, 253, kind, 0)
    oif_attribute = attribute(RTA_OIF, struct.pack("=I", oif)) if oif else b""
    return fixed + attribute(RTA_DST, destination.network_address.packed) + oif_attribute + more


def test_the_overlays_own_route() -> None:
    own = attribute(RTA_PREFSRC, OWN.packed)
    assert parse_route(body(more=own), INDEX) == RouteState(Route(OVERLAY, OWN))


def test_a_peers_route_with_its_mtu() -> None:
    more = attribute(RTA_PREFSRC, OWN.packed) + attribute(RTA_METRICS, attribute(2, struct.pack("=I", 1200)))
    state = parse_route(body(PEER, protocol=MESHRAY_PROTOCOL, more=more), INDEX)
    assert state == RouteState(Route(PEER, OWN, 1200, MESHRAY_PROTOCOL))


@pytest.mark.parametrize(
    "route", [Route(OVERLAY, OWN), Route(PEER, OWN, 1200, MESHRAY_PROTOCOL), Route(PEER, protocol=MESHRAY_PROTOCOL)]
)
def test_a_set_value_is_read_back(route: Route) -> None:
    assert parse_route(route_body(INDEX, route), INDEX) == RouteState(route)


@pytest.mark.parametrize(
    ("message", "elsewhere"),
    [
        (body(oif=1), "dev lo"),
        (body(oif=INDEX, more=attribute(RTA_GATEWAY, bytes([192, 0, 2, 1]))), "via 192.0.2.1 "),
        (body(oif=0, kind=6), "blackhole"),
        (body(oif=1, kind=7), "unreachable"),
        (body(oif=0, more=attribute(9, bytes(8))), "several next hops"),
    ],
)
def test_where_else_a_route_leads(message: bytes, elsewhere: str) -> None:
    state = parse_route(message, INDEX)
    assert state is not None
    assert state.elsewhere.startswith(elsewhere)


@pytest.mark.parametrize(
    "message",
    [
        body(table=107),
        body(tos=8),
        body(more=attribute(RTA_PRIORITY, struct.pack("=I", 100))),
        body(IPv4Network("0.0.0.0/0"))[: ROUTE.size],
    ],
)
def test_what_does_not_count(message: bytes) -> None:
    assert parse_route(message, INDEX) is None


@given(st.binary(min_size=ROUTE.size, max_size=200))
def test_any_bytes_are_parsed_or_skipped(message: bytes) -> None:
    length = message[1] % 33
    state = parse_route(message[:1] + bytes([length]) + message[2:], INDEX)
    assert state is None or isinstance(state, RouteState)
