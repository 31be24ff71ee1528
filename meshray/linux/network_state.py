"""The state of the network, updated by rtnetlink's messages (pure).

>>> state = NetworkState("meshray0")
>>> state.feed(data)
['new address 192.168.7.20 on wlan0']
"""

from __future__ import annotations

from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from meshray.linux import netlink, rtnetlink
from meshray.linux.addresses import is_inner
from meshray.linux.netlink import attributes, number

#: IFF_UP and IFF_RUNNING of linux/if.h: enabled by a user, and connected to a cable or an access point.
_CARRIES = 0x1 | 0x40
#: IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE: the address cannot be a source address.
_UNUSABLE = 0x08 | 0x20 | 0x40
#: VPN programs split the default route into two halves, 0.0.0.0/1 and 128.0.0.0/1.
_LONGEST_DEFAULT = 1


class NetworkState:
    """The interfaces, addresses and default routes of all messages so far.

    Args:
        own: the interface whose changes are ignored.
    """

    def __init__(self, own: str) -> None:
        self._own = own
        self._names: dict[int, str] = {}
        self._carries: dict[int, bool] = {}
        self._addresses: set[tuple[int, bytes]] = set()
        #: (family, destination, table, tos, metric[, interface, gateway]) → (interface, gateway).
        self._defaults: dict[tuple[object, ...], tuple[int, bytes]] = {}

    def feed(self, data: bytes) -> list[str]:
        """Process one datagram of the kernel, and return descriptions of the changes."""
        return [reason for message in netlink.messages(data) if (reason := self.take(message.kind, message.body))]

    def take(self, kind: int, body: bytes) -> str:
        """Process one message of the kernel, and return a description of the change; empty without a change."""
        if kind in (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK) and len(body) >= rtnetlink.LINK.size:
            return self._link(kind == rtnetlink.RTM_NEWLINK, body)
        if kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR) and len(body) >= rtnetlink.ADDRESS.size:
            return self._address(kind == rtnetlink.RTM_NEWADDR, body)
        if kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE) and len(body) >= rtnetlink.ROUTE.size:
            return self._route(kind == rtnetlink.RTM_NEWROUTE, body)
        return ""

    def _link(self, is_there: bool, body: bytes) -> str:
        family, _, index, flags, _ = rtnetlink.LINK.unpack_from(body)
        if family not in (0, AF_INET, AF_INET6):  # a message about a bridge's port
            return ""
        found = attributes(body[rtnetlink.LINK.size :])
        if rtnetlink.IFLA_IFNAME in found:
            self._names[index] = found[rtnetlink.IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
        carries = is_there and flags & _CARRIES == _CARRIES
        before = self._carries.get(index, False)
        self._carries[index] = carries
        if not carries:
            # The kernel removes such routes without a message.
            self._forget_routes(index)
        name = self._name(index)
        if not is_there:
            self._forget(index)
        if carries == before or not self._counts(name):
            return ""
        return f"{name} is {'up' if carries else 'down'}"

    def _address(self, is_there: bool, body: bytes) -> str:
        _, _, few_flags, _, index = rtnetlink.ADDRESS.unpack_from(body)
        found = attributes(body[rtnetlink.ADDRESS.size :])
        raw = found.get(rtnetlink.IFA_LOCAL) or found.get(rtnetlink.IFA_ADDRESS, b"")
        if len(raw) not in (4, 16) or not self._counts(self._name(index)) or ip_address(raw).is_link_local:
            return ""
        flags = number(found, rtnetlink.IFA_FLAGS, few_flags)
        usable = is_there and not flags & _UNUSABLE
        key = (index, raw)
        if usable == (key in self._addresses):
            return ""
        if usable:
            self._addresses.add(key)
        else:
            self._addresses.discard(key)
            self._forget_routes(index)
        return f"{'new' if usable else 'lost'} address {ip_address(raw)} on {self._name(index)}"

    def _route(self, is_there: bool, body: bytes) -> str:
        family, length, _, tos, table, _, _, route_type, flags = rtnetlink.ROUTE.unpack_from(body)
        if (
            length > _LONGEST_DEFAULT
            or route_type != rtnetlink.RTN_UNICAST
            or flags & rtnetlink.CLONED
            or family not in (AF_INET, AF_INET6)
        ):
            return ""
        found = attributes(body[rtnetlink.ROUTE.size :])
        index = number(found, rtnetlink.RTA_OIF, 0)
        if not self._counts(self._name(index)):
            return ""
        way = (index, found.get(rtnetlink.RTA_GATEWAY) or found.get(rtnetlink.RTA_MULTIPATH, b""))
        table = number(found, rtnetlink.RTA_TABLE, table)
        destination = (length, found.get(rtnetlink.RTA_DST, b""))
        key: tuple[object, ...] = (family, destination, table, tos, number(found, rtnetlink.RTA_PRIORITY, 0))
        if family == AF_INET6:  # IPv6 has several routers side by side
            key += way
        if is_there == (self._defaults.get(key) == way):
            return ""
        if is_there:
            self._defaults[key] = way
        else:
            self._defaults.pop(key, None)
        return f"{'new' if is_there else 'lost'} default route{f' via {self._name(index)}' if index else ''}"

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
