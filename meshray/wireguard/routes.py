"""Read, set and remove the routes of the overlay's interface, in the main table and with metric 0.

    routes = read_routes(link.index, [IPv4Network("10.99.0.0/16")])
    set_route(kernel, link.index, Route(IPv4Network("10.99.0.7/32"), IPv4Address("10.99.0.2"), 1280, MESHRAY_PROTOCOL))

There are two kinds. The kernel creates the route of the whole overlay with the address. A peer's own route limits the
size of packets to that peer (``mtu``), so that the kernel makes TCP segments fit before WireGuard sees them; it has
meshray's own protocol number.

Everything here blocks.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from meshray.linux import netlink, rtnetlink
from meshray.wireguard.config import MESHRAY_PROTOCOL, Route, RouteState

#: RT_SCOPE_LINK: the destination is directly on the link, without a gateway.
_LINK_SCOPE = 253
#: Of a table with more routes than these (a router with a full Internet table) only the interface's own are read.
_MAX_ROUTES = 20_000
#: Routes without a destination interface, with the names of `ip route`.
_KINDS = {6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_ATTRIBUTES_OF_OTHERS = (rtnetlink.RTA_GATEWAY, rtnetlink.RTA_MULTIPATH, rtnetlink.RTA_VIA, rtnetlink.RTA_ENCAP)


def read_routes(index: int, networks: Collection[IPv4Network]) -> dict[IPv4Network, RouteState]:
    """Return the effective route for each of these networks, and for each single address in them that has a route.

    Args:
        index: the interface's index; routes of other interfaces are reported as such.

    Raises:
        OSError: the kernel does not answer.
    """
    messages = list(_relevant(_dump(0), networks, _MAX_ROUTES))
    if messages and messages[-1] is None:
        messages = list(_relevant(_dump(index), networks, None))
    found: dict[IPv4Network, RouteState] = {}
    for body in messages:
        if body is not None and (state := parse_route(body, index)) is not None:
            # The kernel lists them in the order in which it evaluates them.
            found.setdefault(state.route.destination, state)
    return found


def _relevant(bodies: Iterable[bytes], networks: Collection[IPv4Network], limit: int | None) -> Iterator[bytes | None]:
    """Yield the messages whose destination may be one of ours; None as the last if there are too many to read."""
    lengths = {network.prefixlen for network in networks} | {32}
    wanted = {(network.prefixlen, network.network_address.packed) for network in networks}
    for count, body in enumerate(bodies):
        if limit is not None and count >= limit:
            yield None
            return
        length = body[1]
        if length not in lengths:
            continue
        raw = netlink.attributes(body[rtnetlink.ROUTE.size :]).get(rtnetlink.RTA_DST, b"")
        if (length, raw) in wanted or (length == 32 and any(_contains(network, raw) for network in networks)):
            yield body


def _contains(network: IPv4Network, raw: bytes) -> bool:
    return len(raw) == 4 and int.from_bytes(raw, "big") & int(network.netmask) == int(network.network_address)


def parse_route(body: bytes, index: int) -> RouteState | None:
    """Return the route of a message; None if it is not in the main table, or has a metric or a TOS (pure)."""
    _, length, _, tos, table, protocol, _, kind, flags = rtnetlink.ROUTE.unpack_from(body)
    found = netlink.attributes(body[rtnetlink.ROUTE.size :])
    table = netlink.number(found, rtnetlink.RTA_TABLE, table)
    raw = found.get(rtnetlink.RTA_DST, b"")
    if (
        table != rtnetlink.MAIN_TABLE
        or tos
        or flags & rtnetlink.CLONED
        or netlink.number(found, rtnetlink.RTA_PRIORITY, 0)
        or len(raw) != 4
    ):
        return None
    source = found.get(rtnetlink.RTA_PREFSRC, b"")
    metrics = netlink.attributes(found.get(rtnetlink.RTA_METRICS, b""))
    route = Route(
        IPv4Network((raw, length)),
        IPv4Address(source) if len(source) == 4 else None,
        netlink.number(metrics, rtnetlink.RTAX_MTU, 0),
        protocol,
    )
    oif = netlink.number(found, rtnetlink.RTA_OIF, 0)
    is_plain = kind == rtnetlink.RTN_UNICAST and oif == index and not any(key in found for key in _ATTRIBUTES_OF_OTHERS)
    return RouteState(route, "" if is_plain else _elsewhere(kind, oif, found))


def _elsewhere(kind: int, oif: int, found: netlink.Attributes) -> str:
    if kind != rtnetlink.RTN_UNICAST:
        return _KINDS.get(kind, f"type {kind}")
    gateway = found.get(rtnetlink.RTA_GATEWAY, b"")
    via = f"via {IPv4Address(gateway)} " if len(gateway) == 4 else ""
    try:
        return f"{via}dev {socket.if_indextoname(oif)}"
    except OSError:
        return f"{via}several next hops" if rtnetlink.RTA_MULTIPATH in found else f"{via}dev {oif}"


def _dump(index: int) -> Iterator[bytes]:
    """Yield the bodies of all IPv4 routes of the main table, or, with an index, of those by this interface."""
    header = rtnetlink.ROUTE.pack(socket.AF_INET, 0, 0, 0, rtnetlink.MAIN_TABLE, 0, 0, 0, 0)
    body = header + (netlink.attribute(rtnetlink.RTA_OIF, index) if index else b"")
    # ENOENT: the table does not exist while it has no route.
    with rtnetlink.RouteSocket(strict=True) as kernel, contextlib.suppress(FileNotFoundError):
        yield from kernel.dump(rtnetlink.RTM_GETROUTE, body)


def set_route(kernel: rtnetlink.RouteSocket, index: int, route: Route) -> None:
    """Create the route, or replace the one with the same destination and metric. No other route changes. Idempotent."""
    body = route_body(index, route)
    try:
        kernel.change(rtnetlink.RTM_NEWROUTE, body, rtnetlink.CREATE | rtnetlink.REPLACE)
    except FileExistsError:
        # Our route exists, but another one with the same metric precedes it: that one is replaced once ours is gone.
        kernel.change(rtnetlink.RTM_DELROUTE, route_body(index, Route(route.destination, protocol=route.protocol)))
        kernel.change(rtnetlink.RTM_NEWROUTE, body, rtnetlink.CREATE | rtnetlink.REPLACE)


def remove_route(kernel: rtnetlink.RouteSocket, index: int, destination: IPv4Network) -> None:
    """Remove a peer's own route; idempotent."""
    with contextlib.suppress(ProcessLookupError):  # ESRCH: there is no such route.
        kernel.change(rtnetlink.RTM_DELROUTE, route_body(index, Route(destination, protocol=MESHRAY_PROTOCOL)))


def route_body(index: int, route: Route) -> bytes:
    """Return the message's body for a route by this interface (pure); the opposite of `parse_route`."""
    length, packed = route.destination.prefixlen, route.destination.network_address.packed
    body = rtnetlink.ROUTE.pack(
        socket.AF_INET, length, 0, 0, rtnetlink.MAIN_TABLE, route.protocol, _LINK_SCOPE, rtnetlink.RTN_UNICAST, 0
    )
    body += netlink.attribute(rtnetlink.RTA_DST, packed) + netlink.attribute(rtnetlink.RTA_OIF, index)
    if route.source is not None:
        body += netlink.attribute(rtnetlink.RTA_PREFSRC, route.source.packed)
    if route.mtu:
        body += netlink.attribute(rtnetlink.RTA_METRICS, netlink.attribute(rtnetlink.RTAX_MTU, route.mtu))
    return body
