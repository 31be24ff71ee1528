"""The largest packet that each peer's path carries, as the mtu of the peer's own route.

    set_peer_mtu("meshray0", IPv4Address("10.99.0.7"), 1280)   # ip route replace 10.99.0.7/32 dev meshray0 mtu 1280
    peer_mtus("meshray0")                                      # {IPv4Address('10.99.0.7'): 1280}

The kernel then cuts TCP's segments to fit before WireGuard sees them. The routes are marked by a protocol
number of their own, go with the interface, and nobody else's are touched. Blocking, and not for a thread in
which an event loop runs, like everything on pyroute2.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING

from meshray.errors import MeshrayError
from meshray.wireguard.link import Link, explained, links

if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute

#: Who made a route (rtm_protocol): below 128 and in nobody's list (rt_protos of iproute2); ``ip route`` prints it.
PROTOCOL = 109
_MAIN_TABLE = 254
#: RT_SCOPE_LINK: the peer is right there, no gateway.
_LINK_SCOPE = 253


@dataclass(frozen=True)
class SetMtu:
    """One route to make or to change; ``mtu`` None: to remove."""

    ip: IPv4Address
    mtu: int | None

    def __str__(self) -> str:
        return f"packets to {self.ip}: at most {self.mtu} bytes" if self.mtu else f"packets to {self.ip}: as all others"


def changes(observed: Mapping[IPv4Address, int], wanted: Mapping[IPv4Address, int]) -> tuple[SetMtu, ...]:
    """What makes the one into the other (pure)."""
    removed = [SetMtu(ip, None) for ip in sorted(observed.keys() - wanted.keys())]
    made = [SetMtu(ip, mtu) for ip, mtu in sorted(wanted.items()) if observed.get(ip) != mtu]
    return (*removed, *made)


def keep_peer_mtus(interface: str, wanted: Mapping[IPv4Address, int]) -> tuple[SetMtu, ...]:
    """Makes these the only routes of this kind; returns what changed, nothing where all was so.

    Raises:
        MeshrayError: there is no such interface, or the kernel refuses.
    """
    with links() as table, explained(interface, "read its routes"):
        link = _require(table.find(interface), interface)
        steps = changes(_read(table.netlink, link), wanted)
        sources = table.addresses(link)
        for step in steps:
            with explained(interface, f"set the mtu of the route to {step.ip}"):
                _apply(table.netlink, link, sources, step)
    return steps


def set_peer_mtu(interface: str, ip: IPv4Address, mtu: int | None) -> None:
    """Makes or changes this peer's route; None removes it. Idempotent.

    Args:
        mtu: bytes of an inner packet, with its IP header.

    Raises:
        MeshrayError: there is no such interface, or the kernel refuses.
    """
    with links() as table, explained(interface, f"set the mtu of the route to {ip}"):
        link = _require(table.find(interface), interface)
        _apply(table.netlink, link, table.addresses(link), SetMtu(ip, mtu))


def peer_mtus(interface: str) -> dict[IPv4Address, int]:
    """What `set_peer_mtu` made; empty where there is no such interface."""
    with links() as table, explained(interface, "read its routes"):
        link = table.find(interface)
        return _read(table.netlink, link) if link is not None else {}


def _read(netlink: IPRoute, link: Link) -> dict[IPv4Address, int]:
    found = {}
    for message in netlink.get_routes(family=socket.AF_INET, table=_MAIN_TABLE):
        metrics = message.get_attr("RTA_METRICS")
        mtu = metrics.get_attr("RTAX_MTU") if metrics is not None else None
        if message["proto"] == PROTOCOL and message.get_attr("RTA_OIF") == link.index and message["dst_len"] == 32:
            found[IPv4Address(message.get_attr("RTA_DST"))] = int(mtu or 0)
    return found


def _apply(netlink: IPRoute, link: Link, sources: Iterable[IPv4Interface], step: SetMtu) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    route = {"dst": f"{step.ip}/32", "oif": link.index, "proto": PROTOCOL, "scope": _LINK_SCOPE, "table": _MAIN_TABLE}
    if step.mtu is not None:
        # The interface has an address for probes as well, which the kernel could choose as the source.
        source = next((own.ip for own in sources if own.network.prefixlen < 32 and step.ip in own.network), None)
        own_address = {"prefsrc": str(source)} if source is not None else {}
        netlink.route("replace", **route, **own_address, metrics={"mtu": step.mtu})
        return
    try:
        netlink.route("del", **route)
    except NetlinkError as error:
        if error.code != errno.ESRCH:
            raise


def _require(link: Link | None, interface: str) -> Link:
    if link is None:
        raise MeshrayError("no_interface", f"there is no interface {interface}", hint="meshray up")
    return link
