"""rtnetlink (rtnetlink(7)): its numbers, the fixed parts of its messages, and its sockets.

>>> for message in messages(kernel.recv(65536)):
...     if message.kind == RTM_NEWROUTE:
...         number(attributes(message.body[ROUTE.size :]), RTA_OIF, 0)
"""

from __future__ import annotations

import contextlib
import socket
import struct

from meshray.linux.netlink import TIMEOUT_S, NetlinkSocket

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
#: RTM_F_CLONED: an entry of the routing cache, not a route.
CLONED = 0x200
#: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE.
LINKS, IPV4_ADDRESSES, IPV4_ROUTES, IPV6_ADDRESSES, IPV6_ROUTES = 0x1, 0x10, 0x40, 0x100, 0x400

LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths, tos, table, protocol, scope, type, flags
RULE = struct.Struct("=BBBBBxxBI")  # fib_rule_hdr: family, lengths, tos, table, action, flags

#: SOL_NETLINK and NETLINK_GET_STRICT_CHK: the kernel filters a dump by the fields of the request (Linux 4.20).
_SOL_NETLINK, _STRICT_CHECK = 270, 12


def listen(groups: int) -> socket.socket:
    """Return a non-blocking socket that receives the messages of these groups. Raises OSError."""
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    try:
        kernel.bind((0, groups))
    except OSError:
        kernel.close()
        raise
    return kernel


class RouteSocket(NetlinkSocket):
    """A `NetlinkSocket` for interfaces, addresses, routes and rules.

    Args:
        strict: whether the kernel filters dumps by the fields of the request, if it can.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, *, strict: bool = False) -> None:
        super().__init__(socket.NETLINK_ROUTE, timeout_s)
        if strict:
            with contextlib.suppress(OSError):  # an older kernel: the caller filters again
                self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
