"""Decides what is missing in a host's firewall, and what of ours is to go. Pure.

>>> from ipaddress import IPv4Network
>>> from meshray.firewall.ruleset import Chain, Table
>>> closed = Table("inet", "filter", (Chain("input", "input", "drop", ()),))
>>> opening = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=False)
>>> [(chain.name, way.value) for chain, way in missing(closed, opening)]
[('input', 'in')]
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network

from meshray.defaults import PROBE_PORT
from meshray.firewall.closing import Ranges, contains, ranges
from meshray.firewall.opening import Opening, Way, way_of_hook
from meshray.firewall.own_rules import admission_comment, merged
from meshray.firewall.ruleset import Chain, Packet, Rule, Table, fate

_ALSO = (("udp", PROBE_PORT), ("icmp", 0))
#: Stand for the ports of users' own programs.
_USERS = (20000, 50000)


def overlay_packets(way: Way, opening: Opening, members: Ranges | None = None) -> Iterator[Packet]:
    """What must get through a chain for the mesh to work.

    Args:
        members: the TCP ports of this node that members reach, see `meshray.firewall.closing.Closed`; None: all.
    """
    interface = opening.interface
    iif = interface if way is not Way.OUT else ""
    oif = interface if way is not Way.IN else ""
    samples = (*(("tcp", port) for port in (*_rays(opening), *_USERS)), *_ALSO)
    if way is Way.IN and members is not None and not opening.everything:
        samples = _samples(opening, members)
    for source, target in _address_pairs(opening.network):
        for protocol, port in samples:
            yield Packet(iif, oif, source, target, protocol, port)


def _samples(opening: Opening, members: Ranges) -> tuple[tuple[str, int], ...]:
    tcp = merged(members, ranges(opening.ports))
    ports = {port for pair in tcp for port in pair} | {port for port in _rays(opening) if contains(tcp, port)}
    return (*(("tcp", port) for port in sorted(ports)), *(("udp", port) for port in opening.ports), *_ALSO)


def _rays(opening: Opening) -> tuple[int, ...]:
    """Ray's ports of a head and of a node; of the workers' range the first, one and the last."""
    ray = opening.ray
    return (*ray.open_ports(head=True), *ray.overlay_ports(head=True), *ray.worker_sample)


def _address_pairs(network: IPv4Network) -> list[tuple[IPv4Address, IPv4Address]]:
    nodes, probes = network.subnets(prefixlen_diff=1)
    return [(half[2], half[3]) for half in (nodes, probes)]


def drops(table: Table, chain: Chain, way: Way, opening: Opening, members: Ranges | None) -> bool:
    """Whether this base chain certainly drops something of the overlay that must pass."""
    return any(fate(table, chain, packet) != "accept" for packet in overlay_packets(way, opening, members))


def missing(table: Table, opening: Opening, members: Ranges | None = None) -> list[tuple[Chain, Way]]:
    """The base chains that hold the overlay back, in the table's order."""
    found = []
    for chain in table.chains:
        way = way_of_hook(chain.hook, opening)
        if way and drops(table, chain, way, opening, members):
            found.append((chain, way))
    return found


def wanted_comment(way: Way, opening: Opening, members: Ranges | None) -> str:
    """Of our rules in a foreign chain that let the overlay pass this way."""
    return admission_comment(opening, members) if way is Way.IN else way.comment(opening)


def obsolete(
    table: Table, opening: Opening, members: Ranges | None = None, also_wanted: Collection[str] = ()
) -> list[tuple[Chain, Rule]]:
    """Rules of ours that nothing asks for any more: another network, a hub that is none now, a copy that came too late.

    A rule of ours without effect (the chain drops anyway) is obsolete too: a new one is put before it.
    """
    ways = [way for way in Way if way is not Way.THROUGH or opening.forwards]
    wanted = {wanted_comment(way, opening, members) for way in ways} | set(also_wanted)
    # Ours are in base chains, and in Docker's chain, which belongs to the only chain that forwards there.
    in_vain = {
        (name, wanted_comment(way, opening, members))
        for chain, way in missing(table, opening, members)
        for name in (chain.name, "")
    }
    return [
        (chain, rule)
        for chain, rule in table.marked(opening.mark)
        if rule.comment not in wanted or (chain.name if chain.hook else "", rule.comment) in in_vain
    ]


def port_is_dropped(table: Table, protocol: str, port: int, uplink: str) -> bool:
    """Whether a packet from outside to this port of this host is certainly dropped by one of the table's chains."""
    packet = Packet(iif=uplink, protocol=protocol, port=port)
    return any(
        fate(table, chain, packet) != "accept" for chain in table.chains if chain.hook in ("prerouting", "input")
    )
