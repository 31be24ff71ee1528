"""Decide which rules a host's firewall lacks, and which of ours are obsolete. Pure.

>>> from ipaddress import IPv4Network
>>> from meshray.firewall.ruleset import Chain, Table
>>> closed = Table("inet", "filter", (Chain("input", "input", "drop", ()),))
>>> opening = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=False)
>>> [(chain.name, direction.value) for chain, direction in missing(closed, opening)]
[('input', 'in')]
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network

from meshray.defaults import PROBE_PORT
from meshray.firewall.closing import Ranges, contains, ranges
from meshray.firewall.opening import Direction, Opening, direction_of_hook
from meshray.firewall.own_rules import admission_comment, merged
from meshray.firewall.ruleset import Chain, Packet, Rule, Table, verdict_for

_OTHER_SAMPLES = (("udp", PROBE_PORT), ("icmp", 0))
#: These represent the ports of users' own programs.
_USER_PORT_SAMPLES = (20000, 50000)


def overlay_packets(direction: Direction, opening: Opening, members: Ranges | None = None) -> Iterator[Packet]:
    """Yield the packets that must pass a chain for the mesh to work.

    Args:
        members: the TCP ports of this node that members reach, see `meshray.firewall.closing.Closed`; None: all.
    """
    interface = opening.interface
    iif = interface if direction is not Direction.OUT else ""
    oif = interface if direction is not Direction.IN else ""
    samples = (*(("tcp", port) for port in (*_ray_ports(opening), *_USER_PORT_SAMPLES)), *_OTHER_SAMPLES)
    if direction is Direction.IN and members is not None and not opening.everything:
        samples = _member_samples(opening, members)
    for source, target in _address_pairs(opening.network):
        for protocol, port in samples:
            yield Packet(iif, oif, source, target, protocol, port)


def port_packets(opening: Opening, port: int) -> Iterator[Packet]:
    """Yield the packets with which members connect to this TCP port of this node."""
    for source, target in _address_pairs(opening.network):
        yield Packet(opening.interface, "", source, target, "tcp", port)


def _member_samples(opening: Opening, members: Ranges) -> tuple[tuple[str, int], ...]:
    tcp = merged(members, ranges(opening.ports))
    ports = {port for pair in tcp for port in pair} | {port for port in _ray_ports(opening) if contains(tcp, port)}
    return (*(("tcp", port) for port in sorted(ports)), *(("udp", port) for port in opening.ports), *_OTHER_SAMPLES)


def _ray_ports(opening: Opening) -> tuple[int, ...]:
    """Return Ray's ports of a head and of a node; of the workers' range the first, one in the middle and the last."""
    ray = opening.ray
    return (*ray.open_ports(head=True), *ray.overlay_ports(head=True), *ray.worker_sample)


def _address_pairs(network: IPv4Network) -> list[tuple[IPv4Address, IPv4Address]]:
    nodes, probes = network.subnets(prefixlen_diff=1)
    return [(half[2], half[3]) for half in (nodes, probes)]


def drops(table: Table, chain: Chain, direction: Direction, opening: Opening, members: Ranges | None) -> bool:
    """Return whether this base chain certainly drops a packet of the overlay that must pass."""
    return any(verdict_for(table, chain, packet) != "accept" for packet in overlay_packets(direction, opening, members))


def missing(table: Table, opening: Opening, members: Ranges | None = None) -> list[tuple[Chain, Direction]]:
    """Return the base chains that drop overlay packets, in the table's order."""
    found = []
    for chain in table.chains:
        direction = direction_of_hook(chain.hook, opening)
        if direction and drops(table, chain, direction, opening, members):
            found.append((chain, direction))
    return found


def wanted_comment(direction: Direction, opening: Opening, members: Ranges | None) -> str:
    """Return the comment of our rule in a foreign chain that accepts the overlay's packets of this direction."""
    return admission_comment(opening, members) if direction is Direction.IN else direction.comment(opening)


def obsolete(
    table: Table, opening: Opening, members: Ranges | None = None, also_wanted: Collection[str] = ()
) -> list[tuple[Chain, Rule]]:
    """Return our rules that are no longer needed: of another network, of a former hub, or a duplicate that comes too
    late.

    A rule of ours without effect (the chain drops anyway) is obsolete too: a new one is put before it.
    """
    directions = [direction for direction in Direction if direction is not Direction.THROUGH or opening.forwards]
    wanted = {wanted_comment(direction, opening, members) for direction in directions} | set(also_wanted)
    # Our rules are in base chains, and in Docker's chain, which belongs to the only chain that forwards there.
    ineffective = {
        (name, wanted_comment(direction, opening, members))
        for chain, direction in missing(table, opening, members)
        for name in (chain.name, "")
    }
    return [
        (chain, rule)
        for chain, rule in table.marked(opening.mark)
        if rule.comment not in wanted or (chain.name if chain.hook else "", rule.comment) in ineffective
    ]


def port_is_dropped(table: Table, protocol: str, port: int, uplink: str) -> bool:
    """Return whether one of the table's chains certainly drops a packet from outside to this port of this host."""
    packet = Packet(iif=uplink, protocol=protocol, port=port)
    return any(
        verdict_for(table, chain, packet) != "accept" for chain in table.chains if chain.hook in ("prerouting", "input")
    )
