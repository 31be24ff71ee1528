"""The state of the network, updated by rtnetlink's messages (pure).

>>> state = NetworkState("meshray0")
>>> state.feed(data)
['new address 192.168.7.20 on wlan0']
"""

from __future__ import annotations

from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from meshray.linux import netlink, rtnetlink
from meshray.linux.addresses import is_internal
from meshray.linux.netlink import attributes, number

#: IFF_UP and IFF_RUNNING of linux/if.h: enabled by a user, and connected to a cable or an access point.
_RUNNING = 0x1 | 0x40
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
        self._running: dict[int, bool] = {}
        self._addresses: set[tuple[int, bytes]] = set()
        #: (family, destination, table, tos, metric[, interface, gateway]) → (interface, gateway).
        self._defaults: dict[tuple[object, ...], tuple[int, bytes]] = {}

    def feed(self, data: bytes) -> list[str]:
        """Process one datagram of the kernel, and return descriptions of the changes."""
        return [reason for message in netlink.messages(data) if (reason := self.process(message.kind, message.body))]

    def process(self, kind: int, body: bytes) -> str:
        """Process one message of the kernel, and return a description of the change; empty without a change."""
        if kind in (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK) and len(body) >= rtnetlink.LINK.size:
            return self._link(kind == rtnetlink.RTM_NEWLINK, body)
        if kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR) and len(body) >= rtnetlink.ADDRESS.size:
            return self._address(kind == rtnetlink.RTM_NEWADDR, body)
        if kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE) and len(body) >= rtnetlink.ROUTE.size:
            return self._route(kind == rtnetlink.RTM_NEWROUTE, body)
        return ""

    def _link(self, exists: bool, body: bytes) -> str:
        family, _, index, flags, _ = rtnetlink.LINK.unpack_from(body)
        if family not in (0, AF_INET, AF_INET6):  # a message about a bridge's port
            return ""
        found = attributes(body[rtnetlink.LINK.size :])
        if rtnetlink.IFLA_IFNAME in found:
            self._names[index] = found[rtnetlink.IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
        is_running = exists and flags & _RUNNING == _RUNNING
        before = self._running.get(index, False)
        self._running[index] = is_running
        if not is_running:
            # The kernel removes such routes without a message.
            self._forget_routes(index)
        name = self._name(index)
        if not exists:
            self._forget(index)
        if is_running == before or not self._counts(name):
            return ""
        return f"{name} is {'up' if is_running else 'down'}"

    def _address(self, exists: bool, body: bytes) -> str:
        _, _, short_flags, _, index = rtnetlink.ADDRESS.unpack_from(body)
        found = attributes(body[rtnetlink.ADDRESS.size :])
        raw = found.get(rtnetlink.IFA_LOCAL) or found.get(rtnetlink.IFA_ADDRESS, b"")
        if len(raw) not in (4, 16) or not self._counts(self._name(index)) or ip_address(raw).is_link_local:
            return ""
        flags = number(found, rtnetlink.IFA_FLAGS, short_flags)
        usable = exists and not flags & _UNUSABLE
        key = (index, raw)
        if usable == (key in self._addresses):
            return ""
        if usable:
            self._addresses.add(key)
        else:
            self._addresses.discard(key)
            self._forget_routes(index)
        return f"{'new' if usable else 'lost'} address {ip_address(raw)} on {self._name(index)}"

    def _route(self, exists: bool, body: bytes) -> str:
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
        next_hop = (index, found.get(rtnetlink.RTA_GATEWAY) or found.get(rtnetlink.RTA_MULTIPATH, b""))
        table = number(found, rtnetlink.RTA_TABLE, table)
        destination = (length, found.get(rtnetlink.RTA_DST, b""))
        key: tuple[object, ...] = (family, destination, table, tos, number(found, rtnetlink.RTA_PRIORITY, 0))
        if family == AF_INET6:  # IPv6 has several routers side by side
            key += next_hop
        if exists == (self._defaults.get(key) == next_hop):
            return ""
        if exists:
            self._defaults[key] = next_hop
        else:
            self._defaults.pop(key, None)
        return f"{'new' if exists else 'lost'} default route{f' via {self._name(index)}' if index else ''}"

    def _name(self, index: int) -> str:
        return self._names.get(index, "")

    def _counts(self, name: str) -> bool:
        return name not in (self._own, "lo") and not is_internal(name)

    def _forget(self, index: int) -> None:
        self._names.pop(index, None)
        self._running.pop(index, None)
        self._addresses = {key for key in self._addresses if key[0] != index}

    def _forget_routes(self, index: int) -> None:
        self._defaults = {key: next_hop for key, next_hop in self._defaults.items() if next_hop[0] != index}
