"""The rules of meshray's own chains, as values that are rendered for nftables, iptables and netlink. Pure.

>>> from ipaddress import IPv4Network
>>> opening = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=False)
>>> [rule.comment for rule in own_rules(opening, Closed())["output"]]
['meshray meshray0: no redirects 10.99.0.0/16']
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from meshray.defaults import METRICS_PORT, PROBE_PORT
from meshray.firewall.closing import IPV4, IPV6, Closed, Ranges, digest, family_of, ranges
from meshray.firewall.opening import Direction, Opening

ACCEPT, DROP = "accept", "drop"
#: Part of the comment of rules that close ports, before `Closed.digest`.
CLOSED = "closed"


@dataclass(frozen=True)
class OwnRule:
    """One rule of ours. An empty or None field is not a condition.

    Attributes:
        iif: the packet comes in on this interface.
        oif: it goes out on this one.
        outside: it comes in on neither the loopback nor this interface (the overlay's).
        family: `IPV4` or `IPV6`; the address's family if the rule has an address.
        source: its source, an address or network.
        target: its destination, an address or network.
        elsewhere: its destination is anything but ``target``.
        protocol: tcp, udp or icmp.
        ports: its destination port.
        opens: True: it is the first packet of a TCP connection; False: it certainly is not.
        redirect: it is an ICMP redirect.
        known: conntrack knows its connection.
    """

    verdict: str
    comment: str
    iif: str = ""
    oif: str = ""
    outside: str = ""
    family: str = ""
    source: str = ""
    target: str = ""
    elsewhere: bool = False
    protocol: str = ""
    ports: Ranges = ()
    opens: bool | None = None
    redirect: bool = False
    known: bool = False


def own_rules(opening: Opening, closed: Closed) -> dict[str, list[OwnRule]]:
    """Return the rules of our chains: forward only from overlay to overlay, and admit only the overlay to Ray.

    A hub must not send ICMP redirects into the overlay (nodes would try to reach each other around it), and the
    kernel's own switch is a logical OR over all interfaces, so a rule drops them. A neighbour in the LAN must not reach
    this node's overlay address (Linux answers for each of its addresses on each interface), and a member must not reach
    another address of this node. Only the rules of `Opening.strict` need conntrack, which a host may lack or not apply
    to every packet; firewalld requires it anyway.
    """
    interface, network = opening.interface, str(opening.network)
    through = OwnRule(ACCEPT, "through", iif=interface, oif=interface, source=network, target=network)
    chains = {
        "forward": [
            *([through] if opening.forwards else []),
            OwnRule(DROP, "nothing leaves the overlay here", iif=interface),
            OwnRule(DROP, "nothing enters the overlay here", oif=interface),
        ],
        "input": [*_from_overlay(opening, closed), *_from_outside(opening, closed)],
        "output": [OwnRule(DROP, "no redirects", oif=interface, redirect=True)],
    }
    return {
        chain: [replace(rule, comment=f"{opening.mark} {rule.comment} {network}") for rule in found]
        for chain, found in chains.items()
    }


def _from_overlay(opening: Opening, closed: Closed) -> Iterator[OwnRule]:
    interface = opening.interface
    text = "the overlay leads to overlay addresses only"
    yield OwnRule(DROP, text, iif=interface, target=str(opening.network), elsewhere=True)
    yield OwnRule(DROP, text, iif=interface, family=IPV6)
    if opening.strict and not accepts_all(opening, closed.members):
        named = f"members {digest((_own_tcp_ports(opening), closed.members))}"
        yield OwnRule(ACCEPT, named, iif=interface, known=True)
        for rule in admitted(opening, closed.members):
            yield replace(rule, comment=named)
        yield OwnRule(DROP, named, iif=interface)


def _from_outside(opening: Opening, closed: Closed) -> Iterator[OwnRule]:
    outside, named = opening.interface, f"{CLOSED} {closed.digest}"
    yield OwnRule(DROP, "overlay addresses on the overlay only", outside=outside, target=str(opening.network))
    for scope, ports in closed.in_use:
        yield _scoped(OwnRule(DROP, named, outside=outside, protocol="tcp", ports=ports), scope)
    for scope, ports in closed.exempt:
        yield _scoped(OwnRule(ACCEPT, f"{named} others", outside=outside, protocol="tcp", ports=ports), scope)
    if closed.always:
        yield OwnRule(DROP, f"{named} new", outside=outside, protocol="tcp", ports=closed.always, opens=True)


def _scoped(rule: OwnRule, scope: str) -> OwnRule:
    return replace(rule, family=family_of(scope), target="" if scope in (IPV4, IPV6) else scope)


def accepts_all(opening: Opening, members: Ranges | None) -> bool:
    """Return whether members reach every port."""
    return opening.everything or members is None


def admitted(opening: Opening, members: Ranges | None) -> list[OwnRule]:
    """Return the rules for what members of the mesh reach on this node, even where its other rules drop it.

    A TCP packet that does not open a connection is accepted: it belongs to a connection that was accepted before, or
    the kernel refuses it.
    """
    overlay = OwnRule(
        ACCEPT,
        admission_comment(opening, members),
        iif=opening.interface,
        source=str(opening.network),
        target=str(opening.network),
    )
    if members is None or accepts_all(opening, members):
        return [overlay]
    return [
        replace(overlay, protocol="icmp"),
        replace(overlay, protocol="tcp", opens=False),
        replace(overlay, protocol="tcp", ports=merged(members, _own_tcp_ports(opening))),
        replace(overlay, protocol="udp", ports=ranges([*opening.ports, PROBE_PORT])),
    ]


def _own_tcp_ports(opening: Opening) -> Ranges:
    """Return the TCP ports that members reach on every node, with Ray or without.

    No program listens on the probes' port: the machine refuses the connection, which shows another node that it is
    alive.
    """
    return ranges([*opening.ports, PROBE_PORT, METRICS_PORT])


def admission_comment(opening: Opening, members: Ranges | None) -> str:
    """Return the comment of the rules of `admitted`, by which outdated ones are recognised."""
    every = Direction.IN.comment(opening)
    return every if accepts_all(opening, members) else f"{every} {digest((_own_tcp_ports(opening), members))}"


def merged(one: Ranges, other: Ranges) -> Ranges:
    """Return the union of both sets of ports."""
    return ranges(range(first, last + 1) for first, last in (*one, *other))
