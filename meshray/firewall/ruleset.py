"""A host's packet filter as values, and what it does with a packet: would this chain drop that packet?

Conditions that cannot be judged from the text (marks, address sets, rates) count as not met, so only a drop that is
certain makes meshray act.

>>> table = Table("ip", "filter", (Chain("INPUT", "input", "drop", (Rule("accept", (Condition("iif", ("lo",)),)),)),))
>>> verdict_for(table, table.chains[0], Packet(iif="eth0"))
'drop'
>>> verdict_for(table, table.chains[0], Packet(iif="lo"))
'accept'
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address, ip_network

#: The kernel's own limit for jumps (NFT_JUMP_STACK_SIZE).
_DEEPEST_JUMP = 16
#: An address of no network (RFC 5737), for packets whose address does not matter.
_ANY_ADDRESS = IPv4Address("192.0.2.1")
_PROTOCOL_NUMBERS = {"1": "icmp", "6": "tcp", "17": "udp"}


@dataclass(frozen=True)
class Packet:
    """The first packet of a new connection. An empty string means that the packet passes no such interface.

    Attributes:
        port: the destination's port.
        source_port: the source's; 0: not known, so that no condition on it can be judged.
    """

    iif: str = ""
    oif: str = ""
    source: IPv4Address = _ANY_ADDRESS
    target: IPv4Address = _ANY_ADDRESS
    protocol: str = "tcp"
    port: int = 0
    source_port: int = 0


@dataclass(frozen=True)
class Condition:
    """One match of a rule. A key that `holds` does not know is a condition that cannot be judged."""

    key: str
    values: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        verdict: accept, drop (reject and queue too), return, ``jump NAME``, ``goto NAME``, or empty: the next rule
            decides.
        comment: as written in the rule; ours begin with `Opening.mark`.
        where: its name for deletion: nft's handle, or the arguments of iptables.
    """

    verdict: str
    conditions: tuple[Condition, ...] = ()
    comment: str = ""
    where: str = ""


@dataclass(frozen=True)
class Chain:
    """A chain; hook is empty for one that is only jumped to."""

    name: str
    hook: str
    policy: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Table:
    """A table of nftables, or the filter table of iptables."""

    family: str
    name: str
    chains: tuple[Chain, ...]

    def chain(self, name: str) -> Chain | None:
        """Return the chain of this name."""
        return next((chain for chain in self.chains if chain.name == name), None)

    def marked(self, mark: str) -> Iterator[tuple[Chain, Rule]]:
        """Yield every rule whose comment begins with this mark, with its chain."""
        return ((chain, rule) for chain in self.chains for rule in chain.rules if rule.comment.startswith(mark))

    def without(self, gone: Collection[Rule]) -> Table:
        """Return the table without these rules."""
        chains = (
            replace(chain, rules=tuple(rule for rule in chain.rules if rule not in gone)) for chain in self.chains
        )
        return replace(self, chains=tuple(chains))


def verdict_for(table: Table, chain: Chain, packet: Packet) -> str:
    """Return what a base chain does with the packet: ``accept`` or ``drop``."""
    deciding = _walk(table, chain, packet, 0)
    return deciding[1].verdict if deciding else chain.policy


def deciding_rule(table: Table, chain: Chain, packet: Packet) -> tuple[Chain, Rule] | None:
    """Return the rule that decides about the packet, and its chain; None if the base chain's policy decides."""
    return _walk(table, chain, packet, 0)


def _walk(table: Table, chain: Chain, packet: Packet, depth: int) -> tuple[Chain, Rule] | None:
    for rule in chain.rules:
        if not _applies(rule, packet):
            continue
        kind, _, target = rule.verdict.partition(" ")
        if kind in ("accept", "drop"):
            return chain, rule
        if kind == "return":
            return None
        called = table.chain(target) if kind in ("jump", "goto") and depth < _DEEPEST_JUMP else None
        deciding = _walk(table, called, packet, depth + 1) if called else None
        if deciding or kind == "goto":
            return deciding
    return None


def _applies(rule: Rule, packet: Packet) -> bool:
    return all(holds(condition, packet) for condition in rule.conditions)


def holds(condition: Condition, packet: Packet) -> bool | None:
    """Return whether a condition is met; None if that cannot be known."""
    judge = _JUDGES.get(condition.key)
    met = judge(condition.values, packet) if judge else None
    return None if met is None else met is not condition.negated


def _any(answers: Iterable[bool | None]) -> bool | None:
    """Return True if any is certainly True; without one, a single unknown makes the result unknown."""
    known = list(answers)
    return True if True in known else None if None in known else False


def _interface(pattern: str, name: str) -> bool | None:
    if pattern.startswith(("@", "$")):
        return None
    return name.startswith(pattern[:-1]) if pattern.endswith(("*", "+")) else pattern == name


def _address(text: str, address: IPv4Address) -> bool | None:
    first, dash, last = text.partition("-")
    try:
        if dash:
            return int(ip_address(first)) <= int(address) <= int(ip_address(last))
        return address in ip_network(text, strict=False)
    except ValueError:
        return None


def _port(text: str, port: int) -> bool | None:
    first, dash, last = text.replace(":", "-", 1).partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        return None
    return int(first) <= port <= int(last) if dash else int(first) == port


def _state(values: tuple[str, ...], _: Packet) -> bool | None:
    return "new" in values


def _protocol(text: str, protocol: str) -> bool | None:
    return None if text.startswith("@") else text == "all" or _PROTOCOL_NUMBERS.get(text, text) == protocol


_JUDGES: dict[str, Callable[[tuple[str, ...], Packet], bool | None]] = {
    "iif": lambda values, packet: _any(_interface(value, packet.iif) for value in values),
    "oif": lambda values, packet: _any(_interface(value, packet.oif) for value in values),
    "saddr": lambda values, packet: _any(_address(value, packet.source) for value in values),
    "daddr": lambda values, packet: _any(_address(value, packet.target) for value in values),
    "protocol": lambda values, packet: _any(_protocol(value, packet.protocol) for value in values),
    "dport": lambda values, packet: _any(_port(value, packet.port) for value in values),
    "sport": lambda values, packet: (
        _any(_port(value, packet.source_port) for value in values) if packet.source_port else None
    ),
    "icmptype": lambda values, _: bool({"echo-request", "8"} & set(values)),
    "state": _state,
    "status": lambda values, _: False,  # a new packet that no NAT rule has touched
    "family": lambda values, _: bool({"ipv4", "ip", "2"} & set(values)),
    # A packet to this host is neither a broadcast nor for another host; a forwarded or sent packet is for another host.
    "targettype": lambda values, packet: ("local" in values) is (not packet.oif),
    "packettype": lambda values, _: "host" in values,
}
