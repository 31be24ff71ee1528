"""Errors about an interface, in words that help a user."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.netlink import attribute
from meshray.linux.rtnetlink import ADDRESS, LINK
from meshray.wireguard.interface import (
    Interface,
    device_errors,
    foreign_interface,
    mark_of,
    open_interfaces,
    parse_address,
    parse_interface,
)
from meshray.wireguard.plan import SetListenPort


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.EADDRINUSE, "in use"), "port_in_use", "UDP port 51888 is in use by another program"),
        (NetlinkError(errno.EADDRINUSE), "port_in_use", "UDP port 51888 is in use by another program"),
        (PermissionError(errno.EPERM, ""), "not_root", "meshray0: cannot listen on UDP port 51888: root is needed"),
        (
            NetlinkError(errno.ENOBUFS),
            "device_failed",
            "meshray0: cannot listen on UDP port 51888: No buffer space available",
        ),
        (ValueError("odd"), "device_failed", "meshray0: cannot listen on UDP port 51888: odd"),
        (MeshrayError("engine_failed", "wireguard-go ended"), "engine_failed", "wireguard-go ended"),
    ],
)
def test_a_failure_names_interface_step_and_cause(error: Exception, code: str, message: str) -> None:
    with pytest.raises(MeshrayError) as raised, device_errors("meshray0", SetListenPort(51888)):
        raise error
    assert (raised.value.code, raised.value.message) == (code, message)


def test_a_foreign_interface_is_named_by_kind_and_owner() -> None:
    by_hand = Interface("meshray0", 7, "tun", "", 1420, up=True)
    assert "meshray0 is a tun interface not created by meshray" in foreign_interface(by_hand).message
    alias = mark_of(Home(Path("/other"), Path("/run/other")))
    assert "of /other" in foreign_interface(Interface("meshray0", 7, "", alias, 1420, up=True)).message


def test_a_mark_fits_into_an_alias() -> None:
    assert len(mark_of(Home(Path("/" + "a" * 400), Path("/run"))).encode()) == 255
    assert len(mark_of(Home(Path("/" + "ä" * 400), Path("/run"))).encode()) <= 255


def test_a_link_message_of_the_kernel_is_decoded() -> None:
    info = attribute(18, attribute(1, b"wireguard\0"))
    body = LINK.pack(0, 0, 7, 0x1 | 0x10, 0) + attribute(3, b"meshray0\0") + attribute(4, 1420) + info
    assert parse_interface(body) == Interface("meshray0", 7, "wireguard", "", 1420, up=True)
    marked = LINK.pack(0, 0, 7, 0, 0) + attribute(3, b"meshray0\0") + attribute(20, b"meshray /var/lib\0")
    assert parse_interface(marked) == Interface("meshray0", 7, "", "meshray /var/lib", 0, up=False)


def test_the_own_address_of_a_point_to_point_link_is_the_local_one() -> None:
    fixed = ADDRESS.pack(socket.AF_INET, 16, 0, 0, 7)
    far, own = attribute(1, bytes([10, 99, 0, 1])), attribute(2, bytes([10, 99, 0, 7]))
    assert parse_address(fixed + far + own) == (7, IPv4Interface("10.99.0.7/16"))
    assert parse_address(fixed + far) == (7, IPv4Interface("10.99.0.1/16"))


def test_an_interface_that_does_not_exist_is_not_found() -> None:
    with open_interfaces() as interfaces:
        assert interfaces.find("no-such-link") is None
        loopback = interfaces.find("lo")
        assert loopback is not None
        assert loopback.index == socket.if_nametoindex("lo")
        assert all(address.is_loopback for address in interfaces.addresses(loopback))
