"""Where this machine sends what belongs to the overlay, and who else makes networks on it: facts and checks (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding

#: Where Tailscale's addresses are; its rule ts-input drops them from every interface but its own.
_TAILSCALE = IPv4Network("100.64.0.0/10")
#: rp_filter of the kernel's ip-sysctl.rst: 1 drops what would not be answered by the same interface.
_STRICT = 1
#: So many are named, no more.
_NAMED = 3


@dataclass(frozen=True)
class StolenRoute:
    """An overlay address whose packets go elsewhere.

    Attributes:
        address: of a peer.
        node: its name.
        interface: by which they leave; empty: they are refused, as ``refused`` says.
        network: of the route that was chosen, with its ``table`` (number); empty: not known.
        rule: the policy rule that led there; empty: one of the kernel's own.
    """

    address: str = ""
    node: str = ""
    interface: str = ""
    refused: str = ""
    network: str = ""
    table: int = 0
    rule: str = ""


@dataclass(frozen=True)
class OtherNetwork:
    """An interface of somebody else's network software.

    Attributes:
        owner: whose it is: Tailscale, WireGuard, Docker…
        networks: that are routed to it.
    """

    interface: str = ""
    owner: str = ""
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoutingFacts:
    """Routes, policy rules, interfaces.

    Attributes:
        overlay: the mesh's network; empty: none is known.
        unknown: why the routes were not asked; empty where they were.
        asked: how many addresses the kernel was asked about.
        overlay_rp_filter: of the overlay interface, the larger of its own and of ``all``; None: not known.
        uplinks: of a hub: every interface with an address that is published, and its rp_filter.
        unanswered: of a hub: the interfaces among them on which a strict filter drops the peers' packets, with the
            interface by which the answer would leave.
    """

    overlay: str = ""
    interface: str = ""
    unknown: str = ""
    asked: int = 0
    stolen: tuple[StolenRoute, ...] = ()
    others: tuple[OtherNetwork, ...] = ()
    overlay_rp_filter: int | None = None
    uplinks: dict[str, int] | None = None
    unanswered: dict[str, str] | None = None


def other_vpns(facts: RoutingFacts) -> Finding:
    """Other overlays and container networks are no harm while their addresses are others."""
    if facts.unknown and not facts.others:
        return Finding(SKIP, facts.unknown)
    names = ", ".join(f"{other.owner} ({other.interface})" for other in facts.others)
    if not facts.overlay:
        return Finding(OK, names or "none")
    overlay = IPv4Network(facts.overlay)
    hidden = []
    for other in facts.others:
        if other.owner == "Tailscale" and overlay.overlaps(_TAILSCALE):
            return Finding(
                FAIL,
                f"Tailscale drops {_TAILSCALE} from all interfaces but {other.interface}, and the overlay is {overlay}",
                "tailscale set --netfilter-mode=off, or make the mesh anew: meshray init --network 10.201.0.0/16",
            )
        for network in map(IPv4Network, other.networks):
            if overlay.overlaps(network) and network.prefixlen >= overlay.prefixlen:
                return Finding(
                    FAIL,
                    f"{network} of {other.owner} on {other.interface} lies in the overlay {overlay}: "
                    "what goes to nodes with such addresses ends there",
                    _removal(other, network),
                )
            hidden += [f"{network} of {other.owner} on {other.interface}"] if overlay.overlaps(network) else []
    if hidden:
        return Finding(
            WARN,
            f"the overlay {overlay} hides a part of {hidden[0]}",
            "if that part is needed, make the mesh anew: meshray init --network 10.201.0.0/16",
        )
    return Finding(OK, names or "none")


def _removal(other: OtherNetwork, network: IPv4Network) -> str:
    if other.owner == "Docker":
        return f"docker network ls; docker network rm the one with {network}, and make it anew with another --subnet"
    return f"ip route del {network} dev {other.interface}; then give {other.owner} other addresses"


def overlay_route(facts: RoutingFacts) -> Finding:
    """The kernel itself was asked by which interface it would send to each peer."""
    if facts.unknown:
        return Finding(SKIP, facts.unknown)
    if not facts.stolen:
        return Finding(OK, f"all {facts.asked} addresses of peers leave by {facts.interface}")
    first, *more = facts.stolen
    told = [f"{route.address} ({route.node}) {_whereto(route)}" for route in facts.stolen[:_NAMED]]
    left = f", and {len(facts.stolen) - _NAMED} more" if len(more) >= _NAMED else ""
    return Finding(FAIL, "; ".join(told) + left, _giving_back(first, facts))


def _whereto(route: StolenRoute) -> str:
    via = f"leaves by {route.interface}" if route.interface else f"is refused ({route.refused})"
    by = f" by the route {route.network} in table {route.table}" if route.network else ""
    return via + by + (f", through the rule {route.rule}" if route.rule else "")


def _giving_back(route: StolenRoute, facts: RoutingFacts) -> str:
    if route.rule or not route.network:
        return f"ip rule add to {facts.overlay} lookup main priority 50; see ip rule and ip route get {route.address}"
    table = "" if route.table in (0, 254) else f" table {route.table}"
    kind = "" if route.interface else f"{route.refused} "
    device = f" dev {route.interface}" if route.interface else ""
    return f"ip route del {kind}{route.network}{device}{table}"


def rp_filter(facts: RoutingFacts) -> Finding:
    """A strict filter is harmless while answers leave where the packets came in."""
    if facts.unknown:
        return Finding(SKIP, facts.unknown)
    if facts.overlay_rp_filter is None:
        return Finding(SKIP, "the kernel does not tell it")
    if facts.overlay_rp_filter == _STRICT and facts.stolen:
        return Finding(
            FAIL,
            f"it is strict on {facts.interface}, and answers to {facts.stolen[0].address} leave by "
            f"{facts.stolen[0].interface or 'no interface'}: what comes from there is dropped",
            f"sysctl net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{facts.interface}.rp_filter=2",
        )
    uplinks, unanswered = facts.uplinks or {}, facts.unanswered or {}
    for interface, other in unanswered.items():
        return Finding(
            FAIL if unanswered.keys() >= uplinks.keys() else WARN,
            f"it is strict on {interface}, but answers to the nodes leave by {other}: what they send to the address "
            f"of {interface} is dropped",
            f"sysctl net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{interface}.rp_filter=2",
        )
    return Finding(OK, f"{facts.overlay_rp_filter} on {facts.interface}, answers leave where packets come in")
