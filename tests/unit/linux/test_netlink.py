"""Requests to this kernel that need no permission: reading."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from meshray.linux.netlink import attribute, attributes, number, read_answer, text
from meshray.linux.rtnetlink import ADDRESS, IFLA_IFNAME, LINK, RTM_GETADDR, RTM_GETLINK, RouteSocket


def named(name: str) -> bytes:
    return bytes(LINK.size) + attribute(IFLA_IFNAME, name.encode() + b"\0")


def test_one_interface_is_requested_by_name() -> None:
    with RouteSocket() as kernel:
        body = kernel.get(RTM_GETLINK, named("lo"))
    assert text(attributes(body[LINK.size :]), IFLA_IFNAME) == "lo"
    assert LINK.unpack_from(body)[2] == socket.if_nametoindex("lo")


def test_all_are_listed_and_the_socket_is_used_again() -> None:
    with RouteSocket() as kernel:
        for _ in range(2):
            bodies = kernel.dump(RTM_GETLINK, bytes(LINK.size))
            names = {text(attributes(body[LINK.size :]), IFLA_IFNAME) for body in bodies}
            assert names == {name for _, name in socket.if_nameindex()}
        assert list(kernel.dump(RTM_GETADDR, bytes(ADDRESS.size)))


def test_a_refusal_has_the_kernels_errno_and_the_next_request_works() -> None:
    with RouteSocket() as kernel:
        with pytest.raises(OSError, match=r"\[Errno") as raised:
            kernel.get(RTM_GETLINK, named("no-such-link"))
        assert raised.value.errno == errno.ENODEV
        assert kernel.get(RTM_GETLINK, named("lo"))


def message(kind: int, body: bytes, sequence: int = 7) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body


def test_a_dump_ends_at_its_end_message() -> None:
    entry, done = message(16, b"body"), message(3, bytes(4))
    assert read_answer(entry, 7) == ([b"body"], False)
    assert read_answer(entry + done, 7) == ([b"body"], True)
    assert read_answer(message(16, b"late", 6) + message(3, bytes(4), 6), 7) == ([], False)


def test_a_refusal_is_reported() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)) as caught:
        read_answer(message(2, struct.pack("=i", -errno.ENOENT) + bytes(16)), 7)
    assert caught.value.errno == errno.ENOENT


def test_attributes_are_padded_and_read_back() -> None:
    data = attribute(1, b"abc") + attribute(2, 7) + attribute(3, b"")
    assert len(data) == 8 + 8 + 4
    found = attributes(data)
    assert (text(found, 1), number(found, 2, 0), found[3]) == ("abc", 7, b"")
    assert (text(found, 9), number(found, 9, 5)) == ("", 5)
