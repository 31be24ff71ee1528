"""The addresses of this machine's interfaces, and those that other machines may use.

>>> interface_addresses()
[IPv4Address('192.168.1.20'), IPv6Address('2001:db8::7')]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from meshray.linux import netlink, rtnetlink

#: Interfaces of networks inside this machine (containers, virtual machines), and meshray's own.
_INTERNAL = re.compile(
    r"(docker|br-[0-9a-f]{12}|virbr|veth|cni|flannel|cali|lxc|lxd|podman|vmnet|vboxnet|kube|meshray)"
)
#: IFF_UP of linux/if.h.
_UP = 0x1
#: IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE of linux/if_addr.h.
_UNSTABLE = 0x01 | 0x08 | 0x20 | 0x40


@dataclass(frozen=True)
class InterfaceAddress:
    """One address as the kernel reports it."""

    interface: str
    address: IPv4Address | IPv6Address
    is_up: bool = True
    is_stable: bool = True


def interface_addresses() -> list[IPv4Address | IPv6Address]:
    """Return the addresses of this machine that other machines may use. Blocks.

    Raises:
        OSError: the kernel does not answer.
    """
    return reachable(_read_addresses())


def reachable(addresses: Iterable[InterfaceAddress]) -> list[IPv4Address | IPv6Address]:
    """Return the addresses that may be reachable from outside, IPv4 first, in the kernel's order."""
    usable = [item.address for item in addresses if _may_be_reachable(item)]
    return sorted(dict.fromkeys(usable), key=lambda address: address.version)


def is_internal(interface: str) -> bool:
    """Return whether an interface of this name belongs to containers, virtual machines or meshray."""
    return _INTERNAL.match(interface) is not None


def _may_be_reachable(item: InterfaceAddress) -> bool:
    address = item.address
    return (
        item.is_up
        and item.is_stable
        and not is_internal(item.interface)
        and not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)
    )


def _read_addresses() -> list[InterfaceAddress]:
    with rtnetlink.RouteSocket() as kernel:
        links = dict(_parse_link(body) for body in kernel.dump(rtnetlink.RTM_GETLINK, bytes(rtnetlink.LINK.size)))
        bodies = kernel.dump(rtnetlink.RTM_GETADDR, bytes(rtnetlink.ADDRESS.size))
        return [found for body in bodies if (found := parse_address(body, links)) is not None]


def _parse_link(body: bytes) -> tuple[int, tuple[str, bool]]:
    """Return the index of an interface, its name, and whether it is up."""
    _, _, index, flags, _ = rtnetlink.LINK.unpack_from(body)
    return index, (
        netlink.text(netlink.attributes(body[rtnetlink.LINK.size :]), rtnetlink.IFLA_IFNAME),
        bool(flags & _UP),
    )


def parse_address(body: bytes, links: Mapping[int, tuple[str, bool]]) -> InterfaceAddress | None:
    """Return the address of a message RTM_NEWADDR (pure), or None if its interface is not in ``links``.

    Args:
        links: the name of each interface, and whether it is up, by index.
    """
    _, _, short_flags, _, index = rtnetlink.ADDRESS.unpack_from(body)
    found = netlink.attributes(body[rtnetlink.ADDRESS.size :])
    # On a point-to-point link IFA_ADDRESS is the peer's. IFA_LOCAL, if present, is always the local address.
    own = found.get(rtnetlink.IFA_LOCAL) or found.get(rtnetlink.IFA_ADDRESS, b"")
    if index not in links or len(own) not in (4, 16):
        return None
    interface, is_up = links[index]
    flags = netlink.number(found, rtnetlink.IFA_FLAGS, short_flags)
    return InterfaceAddress(interface, ip_address(own), is_up, not flags & _UNSTABLE)
