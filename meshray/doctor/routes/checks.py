"""Checks of the routes to the overlay, and of other networks on this machine (pure)."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Network

from meshray.doctor.host_specs import host_spec
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec
from meshray.doctor.routes.facts import MISSING, OWN, OtherNetwork, RoutingFacts, StolenRoute

#: Tailscale's addresses; its rule ts-input drops them on every interface but its own.
_TAILSCALE = IPv4Network("100.64.0.0/10")
#: rp_filter of the kernel's ip-sysctl.rst: 1 drops packets whose answer would not leave by the same interface.
_STRICT = 1
#: A route this wide takes all traffic, or half or a quarter of it, as VPNs with a full tunnel have: no network behind
#: it needs an address of the overlay. The widest network for private use is 10.0.0.0/8 (RFC 1918).
_ALL_TRAFFIC = 7
#: The maximum number that are named.
_NAMED = 3
_LOCAL_TABLE = 255
#: The priority of a policy rule that returns the overlay, unless an earlier one takes the packets.
_BEFORE_OTHERS = 50
_OR_ANOTHER_NETWORK = "or create the mesh again with another network: meshray init --network 10.201.0.0/16"


def other_vpns(facts: RoutingFacts) -> Finding:
    """Check other overlays and container networks, which are harmless while their addresses differ."""
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
                "create the mesh again with another network: meshray init --network 10.201.0.0/16",
            )
        for network in map(IPv4Network, other.networks):
            # Beside a route of the same size the overlay's own route wins, and `overlay_route` reports where it does
            # not.
            if overlay.overlaps(network) and network.prefixlen > overlay.prefixlen:
                return Finding(
                    FAIL,
                    f"{network} of {other.owner} on {other.interface} lies in the overlay {overlay}: "
                    "what goes to nodes with such addresses ends there",
                    _removal(other, network),
                )
            if overlay.overlaps(network) and network.prefixlen > _ALL_TRAFFIC:
                hidden.append((network, other))
    if hidden:
        network, other = hidden[0]
        return Finding(
            WARN,
            f"the overlay {overlay} hides a part of {network} of {other.owner} on {other.interface}",
            f"nothing, if no machine behind {other.interface} has an address in {overlay}; {_OR_ANOTHER_NETWORK}",
        )
    return Finding(OK, names or "none")


def _removal(other: OtherNetwork, network: IPv4Network) -> str:
    if other.owner == "Docker":
        return f"docker network ls; recreate the one with {network} with another --subnet, {_OR_ANOTHER_NETWORK}"
    return f"give {other.owner} other addresses than {network} on {other.interface}, {_OR_ANOTHER_NETWORK}"


def overlay_route(facts: RoutingFacts) -> Finding:
    """Check the interface that the kernel would use for each peer."""
    if facts.unknown:
        return Finding(SKIP, facts.unknown)
    if facts.own_route not in ("", OWN):
        return _own_route(facts)
    if not facts.stolen:
        return Finding(OK, f"all {facts.asked} addresses of peers leave by {facts.interface}")
    return Finding(FAIL, _describe(facts.stolen), _recovery_command(facts.stolen[0], facts))


def _describe(stolen: tuple[StolenRoute, ...]) -> str:
    texts = [f"{route.address} ({route.node}) {_destination(route)}" for route in stolen[:_NAMED]]
    return "; ".join(texts) + (f", and {len(stolen) - _NAMED} more" if len(stolen) > _NAMED else "")


def _destination(route: StolenRoute) -> str:
    via = f"leaves by {route.interface}" if route.interface else f"is refused ({route.refused})"
    by = f" by the route {route.network} in table {route.table}" if route.network else ""
    return via + by + (f", through the rule {route.rule}" if route.rule else "")


def _own_route(facts: RoutingFacts) -> Finding:
    """Return the command that creates the route, or replaces one with exactly its destination. Nothing is deleted."""
    own = f"the overlay's own route {facts.overlay} dev {facts.interface}"
    fault = (
        "is missing"
        if facts.own_route == MISSING
        else f"was replaced: {facts.overlay} leads elsewhere ({facts.own_route})"
    )
    culprit = f"; {facts.contested[0]}" if facts.contested else ""
    lost = f"; {_describe(facts.stolen)}" if facts.stolen else ""
    source = f" src {facts.address}" if facts.address else ""
    command = f"ip route replace {facts.overlay} dev {facts.interface} proto kernel scope link{source}"
    first_step = f"configure that program to leave {facts.interface} alone, then: " if facts.contested else ""
    return Finding(FAIL, f"{own} {fault}{culprit}{lost}", first_step + command, repair="routes")


def _recovery_command(route: StolenRoute, facts: RoutingFacts) -> str:
    """Return how the overlay gets the address back, without deleting routes of others, which would cut them off."""
    if route.rule or not route.network:
        priority = max(0, min(_BEFORE_OTHERS, facts.first_rule - 1 if facts.first_rule else _BEFORE_OTHERS))
        return (
            f"ip rule add to {facts.overlay} lookup main priority {priority}; "
            f"see ip rule and ip route get {route.address}"
        )
    if route.table == _LOCAL_TABLE:
        return (
            f"ip address show to {route.address}; this machine has an address that is {route.node}'s: give it another"
        )
    return (
        f"ip -details route show table all {route.network} shows what made that route: give that program other "
        "addresses, "
        f"{_OR_ANOTHER_NETWORK}"
    )


def rp_filter(facts: RoutingFacts) -> Finding:
    """Check rp_filter: a strict filter is harmless while answers leave where the packets came in."""
    if facts.unknown:
        return Finding(SKIP, facts.unknown)
    if facts.overlay_rp_filter is None:
        return Finding(SKIP, "the kernel does not report it")
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


_spec = partial(host_spec, lambda host: host.routing)
SPECS: tuple[Spec, ...] = (
    _spec("other_vpns", "other VPNs", other_vpns),
    _spec("overlay_route", "route to the overlay", overlay_route, "agent_running", "device_up", "other_vpns"),
    _spec("rp_filter", "reverse path filter", rp_filter, "agent_running", "overlay_route"),
)
