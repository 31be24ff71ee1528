"""Ask the networks of this machine whether another machine claims an address by which it reaches other nodes."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from meshray.doctor.context import Context
from meshray.doctor.lan.facts import Claim, LanFacts
from meshray.doctor.routes.lookup import look_up
from meshray.linux.addresses import is_internal
from meshray.linux.arp import Link, owners_on
from meshray.linux.pyroute2_lazy import open_iproute
from meshray.model.address import Endpoint

if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink import nlmsg

#: Peers behind the same router are reached by the same address of this machine.
_MAX_TARGETS = 16
#: IFF_UP and IFF_NOARP of linux/if.h, ARPHRD_ETHER of linux/if_arp.h, IFA_F_DADFAILED of linux/if_addr.h.
_UP, _NO_ARP, _ETHERNET, _DAD_FAILED = 0x1, 0x80, 1, 0x08


@dataclass(frozen=True)
class Asked:
    """An IPv4 address to ask for: one of this machine, its gateway's, or the coordinator's."""

    link: Link
    address: IPv4Address
    is_gateway: bool = False
    is_coordinator: bool = False

    @property
    def is_own(self) -> bool:
        """Whether the address is one of this machine, so that no other may answer."""
        return not self.is_gateway and not self.is_coordinator


def measure(context: Context) -> LanFacts:
    """Return the facts of this node; it takes half a second. Blocking."""
    with open_iproute() as netlink:
        links = {int(link["index"]): link for link in netlink.get_links()}
        failed = tuple(_failed_ipv6(netlink, links, context.interface))
        asked = tuple(dict.fromkeys(_asked(netlink, links, context)))
    own = {mac for link in links.values() if (mac := _mac(link))}
    by_link: dict[Link, list[IPv4Address]] = {}
    for one in asked:
        by_link.setdefault(one.link, []).append(one.address)
    try:
        owners = owners_on(by_link) if by_link else {}
    except OSError as error:
        return LanFacts("only root can ask the LAN" if error.errno == errno.EPERM else str(error), claims=failed)
    addresses = tuple(str(one.address) for one in asked if one.is_own)
    return LanFacts("", addresses, (*claims(asked, owners, own), *failed))


def claims(asked: Iterable[Asked], owners: Mapping[IPv4Address, tuple[bytes, ...]], own: set[bytes]) -> Iterator[Claim]:
    """Yield the addresses that more than one machine claims (pure).

    A machine with two interfaces on the same network answers on both, and a router may be configured to answer for all
    addresses: neither is a claim.

    Args:
        owners: the MAC addresses that answered for each address.
        own: the MAC addresses of this machine.
    """
    foreign = {one: tuple(mac for mac in owners.get(one.address, ()) if mac not in own) for one in asked}
    routers = {macs[0] for one, macs in foreign.items() if one.is_gateway and len(macs) == 1}
    for one, macs in foreign.items():
        others = macs if one.is_gateway else tuple(mac for mac in macs if mac not in routers)
        if len(others) > (0 if one.is_own else 1):
            texts = tuple(mac.hex(":") for mac in others)
            mac = one.link.mac.hex(":")
            yield Claim(str(one.address), one.link.name, mac, texts, one.is_gateway, one.is_coordinator)


def _asked(netlink: IPRoute, links: Mapping[int, nlmsg], context: Context) -> Iterator[Asked]:
    """Yield the addresses by which this machine reaches other nodes, its gateways, and coordinators on its LAN."""
    indices = {
        str(message.get_attr("IFA_LOCAL")): int(message["index"]) for message in netlink.get_addr(family=socket.AF_INET)
    }
    coordinators = {endpoint.ip for endpoint in context.coordinators}
    for target in _targets(context):
        source = _source(target)
        link = _link(links.get(indices.get(str(source), 0)), context.interface)
        if source is None or link is None:
            continue
        yield Asked(link, source)
        chosen = look_up(netlink, target)
        if chosen is None or chosen.index != indices[str(source)]:
            continue
        if chosen.gateway:
            yield Asked(link, IPv4Address(chosen.gateway), is_gateway=True)
        elif target in coordinators:
            yield Asked(link, target, is_coordinator=True)


def _targets(context: Context) -> list[IPv4Address]:
    overlay = context.mesh_map.mesh.network.cidr if context.mesh_map is not None else None
    texts = dict.fromkeys((*context.dialled.values(), *context.peer_endpoints.values()))
    found = dict.fromkeys(endpoint.ip for endpoint in (*context.coordinators, *map(Endpoint.parse, texts)))
    return [
        address
        for address in found
        if isinstance(address, IPv4Address) and not address.is_loopback and (overlay is None or address not in overlay)
    ][:_MAX_TARGETS]


def _source(target: IPv4Address) -> IPv4Address | None:
    """Return the source address of packets to the target, without sending one; None without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        try:
            opened.connect((str(target), 9))
        except OSError:
            return None
        return IPv4Address(opened.getsockname()[0])


def _link(link: nlmsg | None, overlay: str) -> Link | None:
    """Return an interface that uses ARP and leads to other machines; None for others."""
    if link is None or link["ifi_type"] != _ETHERNET or not link["flags"] & _UP or link["flags"] & _NO_ARP:
        return None
    name, mac = str(link.get_attr("IFLA_IFNAME")), _mac(link)
    return Link(name, mac) if mac and name != overlay and not is_internal(name) else None


def _mac(link: nlmsg) -> bytes:
    """Return the MAC address of an Ethernet interface; empty for others."""
    text = str(link.get_attr("IFLA_ADDRESS") or "") if link["ifi_type"] == _ETHERNET else ""
    return bytes.fromhex(text.replace(":", ""))


def _failed_ipv6(netlink: IPRoute, links: Mapping[int, nlmsg], overlay: str) -> Iterator[Claim]:
    """Yield the IPv6 addresses that the kernel does not use because another machine has them (RFC 4862)."""
    for message in netlink.get_addr(family=socket.AF_INET6):
        link = _link(links.get(int(message["index"])), overlay)
        flags = int(message.get_attr("IFA_FLAGS") or message["flags"])
        address = IPv6Address(str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")))
        if link is not None and flags & _DAD_FAILED and not address.is_link_local:
            yield Claim(str(address), link.name, link.mac.hex(":"))
