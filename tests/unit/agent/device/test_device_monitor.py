"""The kernel's messages that concern the overlay's interface, addresses and routes."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network, ip_address

import pytest

from meshray.agent.device.device_monitor import concerns
from meshray.linux.netlink import Message
from meshray.linux.rtnetlink import (
    ADDRESS,
    LINK,
    ROUTE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
)

OVERLAY = IPv4Network("10.99.0.0/16")


def attribute(kind: int, raw: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(raw), kind) + raw + bytes(-len(raw) % 4)


def link(kind: int, name: str) -> Message:
    return Message(kind, 0, LINK.pack(0, 1, 7, 1, 0) + attribute(3, name.encode() + b"\0"))


def address(kind: int, text: str) -> Message:
    raw = ip_address(text).packed
    return Message(kind, 0, ADDRESS.pack(2 if len(raw) == 4 else 10, 24, 0, 0, 7) + attribute(1, raw))


def route(kind: int, text: str, table: int = 254) -> Message:
    network = IPv4Network(text)
    fixed = ROUTE.pack(2, network.prefixlen, 0, 0, table, 2, 253, 1, 0)
    return Message(kind, 0, fixed + (attribute(1, network.network_address.packed) if network.prefixlen else b""))


@pytest.mark.parametrize(
    "message",
    [
        link(RTM_NEWLINK, "meshray0"),
        link(RTM_DELLINK, "meshray0"),
        address(RTM_DELADDR, "10.99.0.7"),
        address(RTM_NEWADDR, "10.99.128.7"),
        route(RTM_DELROUTE, "10.99.0.0/16"),
        route(RTM_NEWROUTE, "10.99.0.0/16"),
        route(RTM_DELROUTE, "10.99.0.7/32"),
    ],
)
def test_messages_that_concern_the_overlay(message: Message) -> None:
    assert concerns(message, "meshray0", OVERLAY)


@pytest.mark.parametrize(
    "message",
    [
        link(RTM_NEWLINK, "meshray01"),
        link(RTM_NEWLINK, "eth0"),
        address(RTM_NEWADDR, "192.168.7.20"),
        address(RTM_NEWADDR, "2001:db8::1"),
        route(RTM_NEWROUTE, "0.0.0.0/0"),
        route(RTM_NEWROUTE, "10.0.0.0/8"),
        route(RTM_NEWROUTE, "10.98.0.0/16"),
        route(RTM_NEWROUTE, "10.99.0.0/16", table=107),
        Message(RTM_NEWROUTE, 0, b""),
        Message(RTM_NEWLINK, 0, b"\0" * 3),
        Message(2, 0, b"\0" * 40),
    ],
)
def test_other_messages_do_not_concern_it(message: Message) -> None:
    assert not concerns(message, "meshray0", OVERLAY)
