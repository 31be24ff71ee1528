"""The check of the routes and rules of a machine that concern another node's address outside the overlay (pure).

A rule or a route that drops an address of another node is a cause only if that address does not work: the same rule
may concern an address that is no longer in use.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshray.doctor.control.facts import ANSWERED
from meshray.doctor.facts import Facts
from meshray.doctor.outer.facts import NO_MAC, OuterAddress, OuterFacts
from meshray.doctor.report import FAIL, OK, SKIP, Finding, Spec, fix_on
from meshray.doctor.routes.lookup import NO_ROUTE
from meshray.model.path import PathKind, Transport

_LOCAL_TABLE = 255


def _outer_addresses(facts: Facts) -> Iterable[Finding]:
    for name, node in facts.nodes.items():
        outer = node.host.outer if node.host is not None else None
        if outer is None or not outer.addresses:
            yield Finding(SKIP, "this machine reaches no other node outside the overlay", node=name)
            continue
        found = dict.fromkeys(
            (one.node, *fault)
            for one in outer.addresses
            if (fault := _fault(one, outer)) is not None and not _works(facts, name, one)
        )
        for other, evidence, fix in found:
            yield Finding(FAIL, evidence, fix_on(name, fix, facts.here), name, other)
        if not found:
            yield _nothing_found(name, outer)


def _nothing_found(name: str, outer: OuterFacts) -> Finding:
    count = len({one.host for one in outer.addresses})
    known = "no route or rule" if not outer.unknown else "no route"
    return Finding(OK, f"{known} of this machine singles out one of {count} outer addresses", node=name)


def _fault(one: OuterAddress, outer: OuterFacts) -> tuple[str, str] | None:
    """Return (evidence, fix) of what this machine does to an address; None if nothing.

    Args:
        outer: all addresses; those of private networks elsewhere may have no route, if another address has one.
    """
    of_node = f"packets to {one.node}'s outer address {one.host}"
    through = f"the route {one.network}" + (f" of table {one.table}" if one.rule else "")
    if one.into_overlay:
        fix = f"ip route del {one.host}/32 dev {one.interface}" if one.network == f"{one.host}/32" else _show(one)
        return f"{of_node} are sent into the tunnel that they should carry, by {through}", fix
    if one.refused == NO_ROUTE:
        is_cut_off = all(other.refused == NO_ROUTE for other in outer.addresses if other.node == one.node)
        down = f"; {', '.join(outer.down)} is down" if outer.down else ""
        fix = "ip link; ip route: the machine needs a network, and a default route"
        return (f"this machine has no route for {of_node}{down}", fix) if is_cut_off else None
    if one.refused:
        by = through if one.network else "a policy rule"
        return f"this machine refuses {of_node} ({one.refused}), by {by}", _show(one)
    if one.drops:
        where = "; ".join(dict.fromkeys(f"{drop.where}: {drop.cause}" for drop in one.drops))
        commands = dict.fromkeys(command for drop in one.drops for command in drop.commands)
        return f"the rules of this machine drop {one.node}'s outer address {one.host}: {where}", "; ".join(commands)
    if one.diverted:
        fix = "nft -a list ruleset shows the rule and the program that made it; it must leave that address alone"
        between = f"packets {'of' if one.inbound else 'to'} {one.node}'s outer address {one.host}"
        return f"{between} are sent elsewhere on this machine itself, by {'; '.join(one.diverted)}", fix
    return _neighbour_fault(one, outer, of_node, through)


def _neighbour_fault(one: OuterAddress, outer: OuterFacts, of_node: str, through: str) -> tuple[str, str] | None:
    """Return (evidence, fix) if the router, or the machine on the same LAN, to which packets are handed is a fault.

    A node may have further addresses in private networks elsewhere, so it must concern all of them.
    """
    alike = (other for other in outer.addresses if (other.node, other.protocol) == (one.node, one.protocol))
    if not all(other.neighbour for other in alike):
        return None
    seen = f"ip neigh show {one.next_hop}"
    handed = f"{of_node} are handed to {one.next_hop} on {one.interface}, by {through}"
    if one.neighbour == NO_MAC:
        fix = f"is {one.next_hop} on, and on the network of {one.interface}? {seen}; ip route get {one.host}"
        return f"{handed}, which does not answer there", fix
    fix = f"{seen}; is that the MAC address of {one.next_hop}? ip route get {one.host}"
    return f"{handed}, whose MAC address {one.neighbour} was set by hand", fix


def _show(one: OuterAddress) -> str:
    if one.rule or not one.network:
        return f"ip rule; ip route get {one.host}: what made that rule must leave {one.host} alone"
    return f"ip -details route show table all {one.network} shows what made that route; it must leave {one.host} alone"


def _works(facts: Facts, name: str, one: OuterAddress) -> bool:
    """Return whether the address works nevertheless, so that what was found there is not a fault."""
    node = facts.nodes[name]
    if one.inbound:
        # Its agent was asked by the connection that it opened to this machine.
        return one.node not in facts.silent
    if one.protocol == "tcp":
        control = node.control
        # The agent connects to any address of the coordinator that answers.
        return control is None or any(found.state == ANSWERED for found in control.endpoints)
    peer = node.path.peers.get(one.node) if node.path is not None else None
    if peer is None:
        return bool(one.neighbour)
    if one.neighbour and peer.kind != PathKind.DIRECT and not peer.is_hub:
        return True  # An address of the peer's own LAN, for example, which was only tried.
    return peer.kind == PathKind.DIRECT and peer.transport == Transport.UDP and peer.answers


SPEC = Spec("outer_addresses", "routes and rules for the outer addresses", ("agent_running",), _outer_addresses)
