"""rtnetlink (rtnetlink(7)): its numbers, the fixed parts of its messages, and the sockets that carry them.

>>> for message in messages(kernel.recv(65536)):
...     if message.kind == RTM_NEWROUTE:
...         number(attributes(message.body[ROUTE.size :]), RTA_OIF, 0)
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from types import TracebackType

from meshray.linux.netlink import ACK, DONE, DUMP, ERROR, messages, request

#: Of linux/rtnetlink.h and linux/netlink.h.
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE = 32
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_IFALIAS = 3, 4, 18, 20
IFLA_INFO_KIND = 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_METRICS, RTA_MULTIPATH, RTA_TABLE, RTA_VIA, RTA_ENCAP = 8, 9, 15, 18, 22
RTAX_MTU = 2
FRA_DST, FRA_IIFNAME, FRA_PRIORITY = 1, 3, 6
#: FR_ACT_TO_TBL and FR_ACT_UNREACHABLE of linux/fib_rules.h.
TO_TABLE, UNREACHABLE = 1, 7
RTN_UNICAST = 1
MAIN_TABLE = 254
#: Flags of a request that changes something: NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE.
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
#: RTM_F_CLONED: an entry of the routing cache, no route.
CLONED = 0x200
#: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE.
LINKS, IPV4_ADDRESSES, IPV4_ROUTES, IPV6_ADDRESSES, IPV6_ROUTES = 0x1, 0x10, 0x40, 0x100, 0x400

LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths, tos, table, protocol, scope, type, flags
RULE = struct.Struct("=BBBBBxxBI")  # fib_rule_hdr: family, lengths, tos, table, action, flags

_NETLINK_ROUTE = 0
#: The kernel answers within a millisecond; one that is this slow is in trouble, seconds.
TIMEOUT_S = 5.0
#: The kernel never puts more into one datagram than 32 KiB, but for one very large message.
_ANSWER_BYTES = 1 << 17
#: SOL_NETLINK and NETLINK_GET_STRICT_CHK: the kernel itself filters a dump by what the request holds (Linux 4.20).
_SOL_NETLINK, _STRICT_CHECK = 270, 12


def dump_request(kind: int, body: bytes) -> bytes:
    """Return the message that asks for all objects of a kind."""
    return request(kind, DUMP, body, kind)


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


class RouteSocket:
    """A socket for one request at a time. Each blocks and raises OSError with the kernel's errno.

    >>> with RouteSocket() as kernel:
    ...     [text(attributes(body[LINK.size :]), IFLA_IFNAME) for body in kernel.dump(RTM_GETLINK, bytes(LINK.size))]
    ['lo', 'eth0']
    """

    def __init__(self) -> None:
        self._socket = ask(TIMEOUT_S)
        self._sequence = 0

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of all objects of a kind (RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE)."""
        return self._answers(kind, DUMP, body)

    def get(self, kind: int, body: bytes) -> bytes:
        """Return the body of the one object that the request names."""
        (answer,) = self._answers(kind, ACK, body)
        return answer

    def change(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Make, change or remove an object.

        Args:
            flags: CREATE, EXCLUSIVE, REPLACE.
        """
        self._answers(kind, ACK | flags, body)

    def _answers(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        self._socket.send(request(kind, flags, body, self._sequence))
        found: list[bytes] = []
        while True:
            for message in messages(self._socket.recv(_ANSWER_BYTES)):
                if message.sequence != self._sequence:  # answers a request that timed out
                    continue
                if message.refused:
                    raise OSError(message.refused, os.strerror(message.refused))
                if message.kind in (ERROR, DONE):
                    return found
                found.append(message.body)
