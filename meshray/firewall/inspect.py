"""Find what on this host drops a port or the overlay, for a user who looks for the cause. Blocks, changes nothing.

    rules = read_host_rules()
    for obstacle in rules.of_port("udp", 51888, "eth0"):
        print(obstacle.where, obstacle.cause, obstacle.commands)

`Firewall` reads only the tables that it may change; this module reads every table that sees an incoming packet: raw and
mangle of both iptables, and the ingress chains of nftables' netdev family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from meshray.firewall import rules
from meshray.firewall.backends import nft
from meshray.firewall.backends.base import HostTable
from meshray.firewall.backends.iptables import guard_in_place
from meshray.firewall.closing import Ranges
from meshray.firewall.host_firewalls import HostFirewalls, tables_of_iptables
from meshray.firewall.host_programs import Run, run_program
from meshray.firewall.kernel_state import KernelState
from meshray.firewall.opening import Direction, Opening, direction_of_hook
from meshray.firewall.ruleset import Chain, Condition, Packet, Rule, Table, deciding_rule, verdict_for

#: The hooks that a packet for this host passes, in this order.
_INWARD = ("ingress", "prerouting", "input")
#: The hooks that a packet of this host passes, in this order.
_OUTWARD = ("output", "postrouting")
#: An address of no network (RFC 5737), for a set that does not contain the one in question.
_NOBODY = "192.0.2.255"


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


@dataclass(frozen=True)
class Flow:
    """Packets between this machine and one outside address.

    Attributes:
        port: the other end's port; ``own_port``: this machine's. 0: any.
    """

    address: IPv4Address
    protocol: str
    port: int = 0
    own_port: int = 0


class HostRules:
    """The host's rules at one moment.

    Attributes:
        problems: what could not be read, in sentences; if there are any, an empty result proves nothing.
        listing: the ruleset as nft prints it; None if nft is missing.
    """

    def __init__(self, tables: list[HostTable], listing: str | None, problems: list[str], uplink: str) -> None:
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
            _obstacle(host_table, chain, packet, host_table.advise_port(chain, protocol, port))
            for host_table in self._tables
            for chain in host_table.table.chains
            if chain.hook in _INWARD and verdict_for(host_table.table, chain, packet) != "accept"
        ]

    def of_address(self, flow: Flow, contains: Callable[[Table, str, str], bool]) -> list[Obstacle]:
        """Return the chains that drop packets to one outside address, or those from it and not from any other.

        A chain may drop everything that was not requested; what it drops of one address alone is meant for that one.

        Args:
            contains: whether a named set of a table contains an address (see `set_contains`).
        """
        inward = Packet(self._uplink, protocol=flow.protocol, port=flow.own_port, source_port=flow.port)
        outward = Packet("", self._uplink, protocol=flow.protocol, port=flow.port, source_port=flow.own_port)
        directions = (
            (_INWARD, inward, replace(inward, source=flow.address)),
            # What this machine sends first does not answer a packet that a rule has accepted.
            (_OUTWARD, None if flow.port else outward, replace(outward, target=flow.address)),
        )
        found = []
        for host_table in self._tables:
            table = _with_members(host_table.table, str(flow.address), contains)
            for hooks, anyone, packet in directions:
                for chain in table.chains:
                    if chain.hook not in hooks or verdict_for(table, chain, packet) == "accept":
                        continue
                    if anyone is None or verdict_for(table, chain, anyone) == "accept":
                        commands = host_table.advise_address(chain, str(flow.address), inward=bool(packet.iif))
                        found.append(_obstacle(replace(host_table, table=table), chain, packet, commands))
        return found

    def diversions(self, flow: Flow) -> list[str]:
        """Return the rules that send packets between this machine and that address elsewhere."""
        listing = self.listing or ""
        outward = Packet("", self._uplink, target=flow.address, protocol=flow.protocol, port=flow.port)
        inward = Packet(self._uplink, source=flow.address, protocol=flow.protocol, port=flow.own_port)
        arriving = nft.diversions(listing, inward) if flow.own_port and self._uplink else []
        return (nft.diversions(listing, outward) if flow.port else []) + arriving

    def diversions_of_port(self, protocol: str, port: int, uplink: str = "") -> list[str]:
        """Return the rules that send packets to this port, from any address, elsewhere."""
        packet = Packet(iif=uplink or self._uplink, protocol=protocol, port=port)
        return nft.diversions(self.listing or "", packet) if packet.iif else []

    def of_overlay(self, opening: Opening, members: Ranges | None = None) -> list[Obstacle]:
        """Return the chains that drop overlay packets that come in, go out or (on a hub) are forwarded.

        Args:
            members: the TCP ports of this node that members must reach.
        """
        return [
            _obstacle(host_table, chain, packet, host_table.advise_overlay(chain, direction, opening, members))
            for host_table, chain, direction, packet in self._held_back(opening, members)
        ]

    def of_overlay_port(self, opening: Opening, port: int) -> list[Obstacle]:
        """Return the chains that drop the first packet of a member to this TCP port of this node."""
        found = []
        for host_table in self._tables:
            for chain in host_table.table.chains:
                packets = rules.port_packets(opening, port) if chain.hook in _INWARD else ()
                dropped = (one for one in packets if verdict_for(host_table.table, chain, one) != "accept")
                if (packet := next(dropped, None)) is None:
                    continue
                commands = host_table.advise_overlay(chain, Direction.IN, opening, ((port, port),))
                # Those for other packets, which pass, are left out. A manager's own command names no port.
                named = [command for command in commands if str(port) in command]
                found.append(_obstacle(host_table, chain, packet, named or commands))
        return found

    def guarded_by_iptables(self, opening: Opening) -> bool:
        """Return whether the iptables rules that replace meshray's own nftables table are in place."""
        return any(guard_in_place(table, opening) for _, table in tables_of_iptables(self._tables))

    def _held_back(
        self, opening: Opening, members: Ranges | None = None
    ) -> Iterator[tuple[HostTable, Chain, Direction, Packet]]:
        for host_table in self._tables:
            for chain in host_table.table.chains:
                direction = Direction.IN if chain.hook == "ingress" else direction_of_hook(chain.hook, opening)
                dropped = (
                    packet
                    for packet in (rules.overlay_packets(direction, opening, members) if direction else ())
                    if verdict_for(host_table.table, chain, packet) != "accept"
                )
                first = next(dropped, None)
                if direction and first:
                    yield host_table, chain, direction, first


def set_contains(table: Table, name: str, address: str, run: Run = run_program) -> bool:
    """Return whether a named set of nftables contains this address. Blocking."""
    return run(["nft", "get", "element", table.family, table.name, name, f"{{ {address} }}"], "").ok


def _with_members(table: Table, address: str, contains: Callable[[Table, str, str], bool]) -> Table:
    """Return the table with each named set of addresses replaced by this address, if the set contains it."""
    known: dict[str, bool] = {}

    def of(condition: Condition) -> Condition:
        if condition.key not in ("saddr", "daddr"):
            return condition
        values = []
        for value in condition.values:
            if value.startswith("@"):
                if value not in known:
                    known[value] = contains(table, value[1:], address)
                values.append(address if known[value] else _NOBODY)
            else:
                values.append(value)
        return replace(condition, values=tuple(values))

    def rule(one: Rule) -> Rule:
        return replace(one, conditions=tuple(of(condition) for condition in one.conditions))

    return replace(
        table, chains=tuple(replace(chain, rules=tuple(rule(one) for one in chain.rules)) for chain in table.chains)
    )


def read_host_rules(run: Run = run_program, proc: Path = Path("/proc")) -> HostRules:
    """Read all rules. Only root sees them; for other users `HostRules.problems` says so."""
    kernel = KernelState(proc)
    host = HostFirewalls(run, kernel)
    listing = host.listing()
    tables = host.tables(listing) + host.further_tables(listing)
    if listing is None and not host.variants() and not host.problems:
        host.problems.append("neither nft nor iptables is installed to read the host's rules")
    return HostRules(tables, listing, host.problems, kernel.uplink())


def _obstacle(host_table: HostTable, chain: Chain, packet: Packet, commands: Sequence[str]) -> Obstacle:
    deciding = deciding_rule(host_table.table, chain, packet)
    if deciding is None:
        cause = f"its policy is {chain.policy}"
    else:
        at = "" if deciding[0].name == chain.name else f" of {deciding[0].name}"
        cause = f"{host_table.backend.describe(deciding[1])}{at}"
    return Obstacle(host_table.label(chain), f"{cause}; it drops {_packet_text(packet)}", tuple(commands))


def _packet_text(packet: Packet) -> str:
    where = f"in from {packet.iif}" if packet.iif else f"out by {packet.oif}"
    if packet.iif and packet.oif:
        where = f"from {packet.iif} to {packet.oif}"
    return f"{packet.protocol.upper()}{f' port {packet.port}' if packet.port else ''} {where}"
