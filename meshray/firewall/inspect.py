"""Find what on this host drops a port or the overlay, for a user who looks for the cause. Blocks, changes nothing.

    view = read_host()
    for obstacle in view.of_port("udp", 51888, "eth0"):
        print(obstacle.where, obstacle.cause, obstacle.commands)

`Firewall` reads only the tables that it may change; this module reads every table that sees an incoming packet: raw and
mangle of both iptables, and the ingress chains of nftables' netdev family.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshray.firewall import rules
from meshray.firewall.backends.base import HeldTable
from meshray.firewall.backends.iptables import guard_in_place
from meshray.firewall.closing import Ranges
from meshray.firewall.host_access import Proc, Run, run_program
from meshray.firewall.host_firewalls import Host, tables_of_iptables
from meshray.firewall.opening import Opening, Way, way_of_hook
from meshray.firewall.ruleset import Chain, Packet, decider, fate

#: The hooks that a packet for this host passes, in this order.
_INWARD = ("ingress", "prerouting", "input")


@dataclass(frozen=True)
class Obstacle:
    """A chain that certainly drops a packet.

    Attributes:
        where: the chain, as its tool names it: ``nft inet filter input``.
        cause: the rule (or policy) that drops it.
        commands: the commands that let it pass there.
    """

    where: str
    cause: str
    commands: tuple[str, ...]


class HostView:
    """The host's rules at one moment.

    Attributes:
        problems: what could not be read, in sentences; if there are any, an empty result proves nothing.
        listing: the ruleset as nft prints it; None if nft is missing.
    """

    def __init__(self, tables: list[HeldTable], listing: str | None, problems: list[str], uplink: str) -> None:
        self._tables = tables
        self.listing = listing
        self.problems = problems
        self._uplink = uplink

    def of_port(self, protocol: str, port: int, uplink: str = "") -> list[Obstacle]:
        """Return the chains that drop the first packet from outside to this port.

        Args:
            uplink: the interface that receives it; empty: that of the default route.
        """
        packet = Packet(iif=uplink or self._uplink, protocol=protocol, port=port)
        return [
            _obstacle(held, chain, packet, held.advise_port(chain, protocol, port))
            for held in self._tables
            for chain in held.table.chains
            if chain.hook in _INWARD and fate(held.table, chain, packet) != "accept"
        ]

    def of_overlay(self, opening: Opening, members: Ranges | None = None) -> list[Obstacle]:
        """Return the chains that drop overlay packets that come in, go out or (on a hub) are forwarded.

        Args:
            members: the TCP ports of this node that members must reach.
        """
        return [
            _obstacle(held, chain, packet, held.advise_overlay(chain, way, opening, members))
            for held, chain, way, packet in self._held_back(opening, members)
        ]

    def guarded_by_iptables(self, opening: Opening) -> bool:
        """Return whether the iptables rules that replace meshray's own nftables table are in place."""
        return any(guard_in_place(table, opening) for _, table in tables_of_iptables(self._tables))

    def _held_back(
        self, opening: Opening, members: Ranges | None = None
    ) -> Iterator[tuple[HeldTable, Chain, Way, Packet]]:
        for held in self._tables:
            for chain in held.table.chains:
                way = Way.IN if chain.hook == "ingress" else way_of_hook(chain.hook, opening)
                dropped = (
                    packet
                    for packet in (rules.overlay_packets(way, opening, members) if way else ())
                    if fate(held.table, chain, packet) != "accept"
                )
                first = next(dropped, None)
                if way and first:
                    yield held, chain, way, first


def read_host(run: Run = run_program, proc: Path = Path("/proc")) -> HostView:
    """Read all rules. Only root sees them; for other users `HostView.problems` says so."""
    kernel = Proc(proc)
    host = Host(run, kernel)
    listing = host.listing()
    tables = host.tables(listing) + host.further_tables(listing)
    if listing is None and not host.variants() and not host.problems:
        host.problems.append("neither nft nor iptables is installed to read the host's rules")
    return HostView(tables, listing, host.problems, kernel.uplink())


def _obstacle(held: HeldTable, chain: Chain, packet: Packet, commands: Sequence[str]) -> Obstacle:
    decided = decider(held.table, chain, packet)
    if decided is None:
        cause = f"its policy is {chain.policy}"
    else:
        at = "" if decided[0].name == chain.name else f" of {decided[0].name}"
        cause = f"{held.backend.describe(decided[1])}{at}"
    return Obstacle(held.label(chain), f"{cause} (what it drops: {_told(packet)})", tuple(commands))


def _told(packet: Packet) -> str:
    where = f"in from {packet.iif}" if packet.iif else f"out by {packet.oif}"
    if packet.iif and packet.oif:
        where = f"from {packet.iif} to {packet.oif}"
    return f"{packet.protocol.upper()}{f' port {packet.port}' if packet.port else ''} {where}"
