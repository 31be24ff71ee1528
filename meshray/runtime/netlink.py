"""rtnetlink's messages as bytes (rtnetlink(7)): read and written without a library, and the sockets that carry them.

>>> for message in messages(kernel.recv(65536)):
...     if message.kind == RTM_NEWROUTE:
...         number(attributes(message.body[ROUTE.size :]), RTA_OIF, 0)
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

#: Of linux/rtnetlink.h and linux/netlink.h.
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
IFLA_IFNAME = 3
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_METRICS, RTA_MULTIPATH, RTA_TABLE, RTA_VIA, RTA_ENCAP = 8, 9, 15, 18, 22
RTAX_MTU = 2
RTN_UNICAST = 1
MAIN_TABLE = 254
#: RTM_F_CLONED: an entry of the routing cache, no route.
CLONED = 0x200
#: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE.
LINKS, IPV4_ADDRESSES, IPV4_ROUTES, IPV6_ADDRESSES, IPV6_ROUTES = 0x1, 0x10, 0x40, 0x100, 0x400

LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths, tos, table, protocol, scope, type, flags
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_ERRNO = struct.Struct("=i")

_NETLINK_ROUTE = 0
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
#: SOL_NETLINK and NETLINK_GET_STRICT_CHK: the kernel itself filters a dump by what the request holds (Linux 4.20).
_SOL_NETLINK, _STRICT_CHECK = 270, 12

Attributes = dict[int, bytes]


class Message(NamedTuple):
    """One message.

    Attributes:
        kind: RTM_*.
        port: the netlink port of the socket that caused it, mostly the id of its process; 0: the kernel did.
    """

    kind: int
    port: int
    body: bytes


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram; what is cut short ends it."""
    place = 0
    while place + _HEADER.size <= len(data):
        length, kind, _, _, port = _HEADER.unpack_from(data, place)
        if length < _HEADER.size:
            return
        yield Message(kind, port, data[place + _HEADER.size : place + length])
        place += _aligned(length)


def attributes(data: bytes) -> Attributes:
    """The attributes that follow a message's fixed part."""
    found: Attributes = {}
    place = 0
    while place + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[place + _ATTRIBUTE.size : place + length]
        place += _aligned(length)
    return found


def number(found: Attributes, kind: int, default: int) -> int:
    """An attribute that is a number of 32 bits."""
    raw = found.get(kind, b"")
    return int(_U32.unpack(raw)[0]) if len(raw) == _U32.size else default


def attribute(kind: int, value: int) -> bytes:
    """The opposite of `number`."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + _U32.size, kind) + _U32.pack(value)


def dump_request(kind: int, body: bytes) -> bytes:
    """Asks for all that there is of a kind."""
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, kind, 0) + body


def ends_dump(data: bytes) -> bool:
    """Whether the answer to a request is complete with this datagram."""
    return any(message.kind in (_NLMSG_ERROR, _NLMSG_DONE) for message in messages(data))


def refusal(data: bytes) -> int:
    """The errno with which the kernel refused a request; 0: it did not."""
    for message in messages(data):
        if message.kind == _NLMSG_ERROR and len(message.body) >= _ERRNO.size:
            return -int(_ERRNO.unpack_from(message.body)[0])
    return 0


def listen(groups: int) -> socket.socket:
    """A socket that does not block and hears what happens in these groups. Raises OSError."""
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
    try:
        kernel.bind((0, groups))
    except OSError:
        kernel.close()
        raise
    return kernel


def ask(timeout_s: float, *, strict: bool = False) -> socket.socket:
    """A socket for requests that block for so long at most. Raises OSError.

    Args:
        strict: the kernel filters dumps by what the request holds, where it can.
    """
    kernel = listen(0)
    kernel.settimeout(timeout_s)
    if strict:
        with contextlib.suppress(OSError):  # an older kernel: whoever asked filters again
            kernel.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
    return kernel


def _aligned(length: int) -> int:
    return (length + 3) & ~3
