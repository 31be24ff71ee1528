"""What rtnetlink's messages tell, against what is known already (pure).

>>> state = NetworkState("meshray0")
>>> state.feed(data)
['new address 192.168.7.20 on wlan0']
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from meshray.runtime.addresses import is_inner

#: Of linux/rtnetlink.h and linux/netlink.h.
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_IFLA_IFNAME = 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 9, 15
_RTN_UNICAST = 1
#: IFF_UP, IFF_RUNNING of linux/if.h: set by a person, and a cable that is plugged in (an access point found).
_CARRIES = 0x1 | 0x40
#: IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE: not an address to send from.
_UNUSABLE = 0x08 | 0x20 | 0x40
#: VPN programs split the default route into two halves, 0.0.0.0/1 and 128.0.0.0/1.
_LONGEST_DEFAULT = 1
#: RTM_F_CLONED: an entry of the routing cache, no route.
_CLONED = 0x200

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")

Attributes = dict[int, bytes]


def _dump_request(kind: int) -> bytes:
    # A body of an ifinfomsg with family AF_UNSPEC serves all three.
    body = bytes(_LINK.size)
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, kind, 0) + body


#: Asks for all there is, one answer after the other.
DUMP_REQUESTS = tuple(_dump_request(kind) for kind in (RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE))


def ends_dump(data: bytes) -> bool:
    """Whether the answer to a request is complete with this datagram."""
    return any(kind in (_NLMSG_ERROR, _NLMSG_DONE) for kind, _ in _messages(data))


class NetworkState:
    """Links, addresses and default routes, as far as the messages told of them.

    Args:
        own: the interface whose news are passed over.
    """

    def __init__(self, own: str) -> None:
        self._own = own
        self._names: dict[int, str] = {}
        self._carries: dict[int, bool] = {}
        self._addresses: set[tuple[int, bytes]] = set()
        #: (family, destination, table, tos, metric[, interface, gateway]) → (interface, gateway).
        self._defaults: dict[tuple[object, ...], tuple[int, bytes]] = {}

    def feed(self, data: bytes) -> list[str]:
        """Takes one datagram of the kernel's; what it changed, in words."""
        return [reason for kind, body in _messages(data) if (reason := self._take(kind, body))]

    def _take(self, kind: int, body: bytes) -> str:
        if kind in (RTM_NEWLINK, RTM_DELLINK) and len(body) >= _LINK.size:
            return self._link(kind == RTM_NEWLINK, body)
        if kind in (RTM_NEWADDR, RTM_DELADDR) and len(body) >= _ADDRESS.size:
            return self._address(kind == RTM_NEWADDR, body)
        if kind in (RTM_NEWROUTE, RTM_DELROUTE) and len(body) >= _ROUTE.size:
            return self._route(kind == RTM_NEWROUTE, body)
        return ""

    def _link(self, is_there: bool, body: bytes) -> str:
        family, _, index, flags, _ = _LINK.unpack_from(body)
        if family not in (0, AF_INET, AF_INET6):  # a bridge tells of its ports
            return ""
        attributes = _attributes(body[_LINK.size :])
        if _IFLA_IFNAME in attributes:
            self._names[index] = attributes[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
        carries = is_there and flags & _CARRIES == _CARRIES
        before = self._carries.get(index, False)
        self._carries[index] = carries
        if not carries:
            # The kernel drops such routes without a word.
            self._forget_routes(index)
        name = self._name(index)
        if not is_there:
            self._forget(index)
        if carries == before or not self._counts(name):
            return ""
        return f"{name} is {'up' if carries else 'down'}"

    def _address(self, is_there: bool, body: bytes) -> str:
        _, _, few_flags, _, index = _ADDRESS.unpack_from(body)
        attributes = _attributes(body[_ADDRESS.size :])
        raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
        if len(raw) not in (4, 16) or not self._counts(self._name(index)) or ip_address(raw).is_link_local:
            return ""
        flags = _number(attributes, _IFA_FLAGS, few_flags)
        usable = is_there and not flags & _UNUSABLE
        key = (index, raw)
        if usable == (key in self._addresses):
            return ""
        if usable:
            self._addresses.add(key)
        else:
            self._addresses.discard(key)
            self._forget_routes(index)
        return f"{'new' if usable else 'no more'} address {ip_address(raw)} on {self._name(index)}"

    def _route(self, is_there: bool, body: bytes) -> str:
        family, length, _, tos, table, _, _, route_type, flags = _ROUTE.unpack_from(body)
        if (
            length > _LONGEST_DEFAULT
            or route_type != _RTN_UNICAST
            or flags & _CLONED
            or family not in (AF_INET, AF_INET6)
        ):
            return ""
        attributes = _attributes(body[_ROUTE.size :])
        index = _number(attributes, _RTA_OIF, 0)
        if not self._counts(self._name(index)):
            return ""
        way = (index, attributes.get(_RTA_GATEWAY) or attributes.get(_RTA_MULTIPATH, b""))
        table = _number(attributes, _RTA_TABLE, table)
        destination = (length, attributes.get(_RTA_DST, b""))
        key: tuple[object, ...] = (family, destination, table, tos, _number(attributes, _RTA_PRIORITY, 0))
        if family == AF_INET6:  # there, several routers stand side by side
            key += way
        if is_there == (self._defaults.get(key) == way):
            return ""
        if is_there:
            self._defaults[key] = way
        else:
            self._defaults.pop(key, None)
        return f"{'new' if is_there else 'no more'} default route{f' by {self._name(index)}' if index else ''}"

    def _name(self, index: int) -> str:
        return self._names.get(index, "")

    def _counts(self, name: str) -> bool:
        return name not in (self._own, "lo") and not is_inner(name)

    def _forget(self, index: int) -> None:
        self._names.pop(index, None)
        self._carries.pop(index, None)
        self._addresses = {key for key in self._addresses if key[0] != index}

    def _forget_routes(self, index: int) -> None:
        self._defaults = {key: way for key, way in self._defaults.items() if way[0] != index}


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, place)
        if length < _HEADER.size:
            return
        yield kind, data[place + _HEADER.size : place + length]
        place += _aligned(length)


def _attributes(data: bytes) -> Attributes:
    found: Attributes = {}
    place = 0
    while place + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[place + _ATTRIBUTE.size : place + length]
        place += _aligned(length)
    return found


def _number(attributes: Attributes, kind: int, default: int) -> int:
    raw = attributes.get(kind, b"")
    return int(_U32.unpack(raw)[0]) if len(raw) == _U32.size else default


def _aligned(length: int) -> int:
    return (length + 3) & ~3
