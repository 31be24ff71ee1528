"""nftables: read `nft -a -t list ruleset`, write scripts for `nft -f -`. All but the class `Nft` is pure.

It uses text and not JSON: some distributions build nft without JSON, and every version prints text.

>>> [table] = parse('''table inet filter { # handle 1
...     chain input { # handle 1
...         type filter hook input priority filter; policy drop;
...         iifname "lo" accept # handle 4
...     }
... }''')
>>> table.chains[0].policy, table.chains[0].rules[0].where
('drop', '4')
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from meshray.firewall.backends.base import Change, HostTable, Outcome
from meshray.firewall.closing import IPV4, IPV6, Closed, Ranges, described, family_of
from meshray.firewall.host_programs import Answer, Run
from meshray.firewall.opening import Direction, Opening
from meshray.firewall.own_rules import OwnRule, admitted, own_rules
from meshray.firewall.ruleset import Chain, Condition, Packet, Rule, Table, holds

#: Our own table: it is replaced atomically and removed as a whole. New chains of meshray belong here too.
OWN_TABLE = "meshray"
#: A copy of these rules in a table that the agent owns; see `meshray.firewall.owned_table`.
OWNED_TABLE = "meshray_owned"

_TABLE = re.compile(r"table (\S+) (\S+) \{")
_CHAIN = re.compile(r"chain (\S+) \{")
_HOOK = re.compile(r"type (\S+) hook (\S+) (.*?)priority [^;]*;(?: policy (\S+);)?")
_HANDLE = re.compile(r" # handle (\d+)$")
_COMMENT = re.compile(r'\bcomment "([^"]*)"')
_TOKEN = re.compile(r'"[^"]*"|[{},]|[^\s,{}"]+')
_QUOTED = re.compile(r'"[^"]*"')
#: Verdicts of a nat chain that change where a packet goes.
_DIVERTS = re.compile(r"\b(redirect|dnat)\b", re.IGNORECASE)
_FINAL = {"accept": "accept", "drop": "drop", "reject": "drop", "queue": "drop", "return": "return"}

#: The words that begin a condition: (first words) → (key, protocol that it implies).
_KEYS: dict[tuple[str, ...], tuple[str, str]] = {
    ("iifname",): ("iif", ""),
    ("iif",): ("iif", ""),
    ("oifname",): ("oif", ""),
    ("oif",): ("oif", ""),
    ("ip", "saddr"): ("saddr", ""),
    ("ip", "daddr"): ("daddr", ""),
    ("ip", "protocol"): ("protocol", ""),
    ("meta", "l4proto"): ("protocol", ""),
    ("meta", "nfproto"): ("family", ""),
    ("meta", "protocol"): ("family", ""),
    ("meta", "pkttype"): ("packettype", ""),
    ("pkttype",): ("packettype", ""),
    ("th", "dport"): ("dport", ""),
    ("tcp", "dport"): ("dport", "tcp"),
    ("udp", "dport"): ("dport", "udp"),
    ("th", "sport"): ("sport", ""),
    ("tcp", "sport"): ("sport", "tcp"),
    ("udp", "sport"): ("sport", "udp"),
    ("icmp", "type"): ("icmptype", "icmp"),
    ("ct", "state"): ("state", ""),
    ("ct", "status"): ("status", ""),
    ("fib", "daddr", "type"): ("targettype", ""),
}
_LOG_OPTIONS = {"prefix", "group", "level", "flags", "snaplen", "queue-threshold"}
#: Matches of protocols that the overlay never carries: a rule with one of them never matches.
_FOREIGN = {"ip6": "ipv6", "icmpv6": "ipv6", "arp": "arp", "ether": "ether"}


class Nft:
    """A `Backend`: the program nft."""

    name = "nft"

    def __init__(self, run: Run) -> None:
        self._run = run

    def read(self) -> Answer:
        """List the whole ruleset."""
        answer = self._run(["nft", "-a", "-t", "list", "ruleset"], "")
        if not answer.ok and not answer.missing and "invalid option" in answer.error:
            answer = self._run(["nft", "-a", "list", "ruleset"], "")  # Older than nftables 0.9.3.
        return answer

    def place(self, table: Table, chain: Chain) -> str:
        """See `Backend.place`."""
        return f"{table.family} {table.name} {chain.name}"

    def describe(self, rule: Rule) -> str:
        """See `Backend.describe`."""
        return f"the rule with handle {rule.where}"

    def open(self, host_table: HostTable, change: Change) -> Outcome:
        """See `Backend.open`. It is one transaction, so that adding a port never interrupts members."""
        opening = change.opening
        script = "".join(delete_command(host_table.table, chain, rule) for chain, rule in change.gone)
        for chain, direction in change.missing:
            script += insert_command(host_table.table, chain, direction, opening, change.members)
        if not script:
            return Outcome()
        answer = self._transact(script)
        if answer.ok:
            changed = [host_table.removed(chain) for chain in dict.fromkeys(chain for chain, _ in change.gone)]
            return Outcome([*changed, *(host_table.opened(chain, direction) for chain, direction in change.missing)])
        problems = [
            host_table.still_drops(chain, direction, opening.interface, answer.cause)
            for chain, direction in change.missing
        ]
        return Outcome(problems=problems or [host_table.not_removed(change.gone[0][0], answer.cause)])

    def remove(self, host_table: HostTable, rules: Sequence[tuple[Chain, Rule]]) -> Outcome:
        """See `Backend.remove`."""
        outcome = Outcome()
        for chain, rule in rules:
            host_table.note_removal(outcome, chain, self._transact(delete_command(host_table.table, chain, rule)))
        return outcome

    def close(self, opening: Opening, closed: Closed) -> tuple[list[str], str]:
        """See `Backend.close`: by replacing our own table. Without nft it returns nothing."""
        answer = self._transact(own_table_script(opening, closed))
        if answer.ok:
            return [f"nft: table inet {OWN_TABLE} in place"], ""
        return [], "" if answer.missing else answer.cause

    def remove_own_table(self) -> tuple[list[str], str]:
        """Remove our own table; return what changed, and the reason if it failed."""
        answer = self._transact(f"delete table inet {OWN_TABLE}\n")
        return ([f"nft: table inet {OWN_TABLE} removed"], "") if answer.ok else ([], answer.cause)

    def advise_port(self, table: Table, chain: Chain, protocol: str, port: int) -> list[str]:
        """See `Backend.advise_port`."""
        return [f"nft insert rule {self.place(table, chain)} {protocol} dport {port} accept"]

    def advise_address(self, table: Table, chain: Chain, address: str, *, inward: bool) -> list[str]:
        """See `Backend.advise_address`."""
        return [f"nft insert rule {self.place(table, chain)} ip {'saddr' if inward else 'daddr'} {address} accept"]

    def advise_overlay(
        self, table: Table, chain: Chain, direction: Direction, opening: Opening, members: Ranges | None
    ) -> list[str]:
        """See `Backend.advise_overlay`."""
        # A netdev chain does not know iifname, but accepts the same words.
        return [
            f"nft '{command}'" for command in insert_command(table, chain, direction, opening, members).splitlines()
        ]

    def _transact(self, script: str) -> Answer:
        return self._run(["nft", "-f", "-"], script)


def parse(listing: str, families: Collection[str] = ("ip", "inet")) -> list[Table]:
    """Return every table of these families except ours; the default families are those that may get a rule of ours.

    ``netdev`` are the tables that see packets right behind the network card, before all others.
    """
    tables: list[Table] = []
    lines = iter(listing.splitlines())
    for line in lines:
        opened = _TABLE.match(line)
        if not opened:
            continue
        chains = tuple(_chains(lines))
        if opened[1] in families and opened[2] not in (OWN_TABLE, OWNED_TABLE):
            tables.append(Table(opened[1], opened[2], chains))
    return tables


def _chains(lines: Iterator[str]) -> Iterator[Chain]:
    """Parse to the end of the table. Everything but chains (sets, maps, counters) is skipped."""
    for raw in lines:
        line = raw.strip()
        opened = _CHAIN.match(line)
        if opened:
            yield _chain(opened[1], _block(lines))
        elif _balance(line) > 0:
            list(_block(lines))
        elif line.startswith("}"):
            return


def _block(lines: Iterator[str]) -> Iterator[str]:
    depth = 1
    for line in lines:
        depth += _balance(line)
        if depth <= 0:
            return
        yield line.strip()


def _balance(line: str) -> int:
    bare = _QUOTED.sub("", line)
    return bare.count("{") - bare.count("}")


def _chain(name: str, lines: Iterator[str]) -> Chain:
    hook, policy = "", ""
    rules: list[Rule] = []
    for line in lines:
        base = _HOOK.match(line)
        if base:
            # Only filter chains are asked whether they drop; meshray leaves others (nat, route) alone.
            hook, policy = base[2] if base[1] == "filter" else "", base[4] or "accept"
            words = (word.strip('"') for word in _TOKEN.findall(base[3]))
            devices = tuple(word for word in words if word not in ("device", "devices", "=", "{", "}", ","))
            if devices:  # It does not see packets that come in elsewhere.
                rules.append(Rule("accept", (Condition("iif", devices, negated=True),)))
        elif _HANDLE.search(line):
            rules.extend(parse_rule(line))
    return Chain(name, hook, policy, tuple(rules))


def diversions(listing: str, packet: Packet) -> list[str]:
    """Return the rules that send this packet elsewhere (redirect, dnat), as their chain and their text.

    A packet with an incoming interface is one that arrives, others are this machine's own.
    """
    hook = "prerouting" if packet.iif else "output"
    found, table, chain, is_nat = [], "", "", False
    for raw in listing.splitlines():
        line = raw.strip()
        if opened := _TABLE.match(raw):
            table = f"{opened[1]} {opened[2]}"
        elif opened := _CHAIN.match(line):
            chain, is_nat = opened[1], False
        elif base := _HOOK.match(line):
            is_nat = (base[1], base[2]) == ("nat", hook)
        elif is_nat and (verdict := _DIVERTS.search(line)) and (handle := _HANDLE.search(line)):
            (rule,) = parse_rule(f"{line[: verdict.start()]}accept{handle[0]}")
            if all(holds(condition, packet) for condition in rule.conditions):
                found.append(f"nft {table} {chain}: {_HANDLE.sub('', line)}")
    return found


def parse_rule(line: str) -> list[Rule]:
    """Yield the rules of one line of a chain. A verdict map becomes one rule for each of its entries."""
    handle = _HANDLE.search(line)
    where = handle[1] if handle else ""
    comment = _COMMENT.search(line)
    text = _COMMENT.sub("", _HANDLE.sub("", line))
    if " vmap " in text:
        return [Rule(verdict, conditions, "", where) for conditions, verdict in _verdict_map(text)]
    tokens = _TOKEN.findall(text)
    verdict, length = _verdict(tokens)
    return [Rule(verdict, tuple(_conditions(tokens[:length])), comment[1] if comment else "", where)]


def _verdict(tokens: Sequence[str]) -> tuple[str, int]:
    """Return the verdict, and the number of tokens before it."""
    for index, token in enumerate(tokens):
        if token in _FINAL:
            return _FINAL[token], index
        if token in ("jump", "goto") and index + 1 < len(tokens):
            return f"{token} {tokens[index + 1]}", index
    return "", len(tokens)


def _verdict_map(text: str) -> Iterator[tuple[tuple[Condition, ...], str]]:
    before, _, after = text.partition(" vmap ")
    for entry in re.findall(r"([^{},]+?) : ([^{},]+)", after):
        verdict, _ = _verdict(entry[1].split())
        yield tuple(_conditions(_TOKEN.findall(f"{before} {entry[0]}"))), verdict


def _conditions(tokens: Sequence[str]) -> Iterator[Condition]:
    index = 0
    while index < len(tokens):
        found, length = _condition(tokens[index:])
        yield from found
        index += length


def _condition(tokens: Sequence[str]) -> tuple[list[Condition], int]:
    """Return the conditions that begin here, and the number of tokens that they take."""
    if tokens[0] == "counter":
        return [], 5 if tokens[1:2] == ["packets"] else 1
    if tokens[0] == "log":
        index = 1
        while tokens[index : index + 1] and tokens[index] in _LOG_OPTIONS:
            index += 2
        return [], index
    if tokens[0] in _FOREIGN:
        return [Condition("family", (_FOREIGN[tokens[0]],))], len(tokens)
    for words in (tuple(tokens[:count]) for count in (3, 2, 1)):
        if words in _KEYS:
            key, protocol = _KEYS[words]
            values, negated, length = _values(tokens[len(words) :])
            found = [Condition("protocol", (protocol,))] if protocol else []
            return [*found, Condition(key, values, negated)], len(words) + length
    return [Condition("unknown", (tokens[0],))], 1


def _values(tokens: Sequence[str]) -> tuple[tuple[str, ...], bool, int]:
    """Return the values of a comparison (one, a list or a set), whether it is negated, and the number of tokens."""
    index = 1 if tokens[:1] in (["!="], ["=="]) else 0
    negated = tokens[:1] == ["!="]
    values: list[str] = []
    if tokens[index : index + 1] == ["{"]:
        end = tokens.index("}") if "}" in tokens else len(tokens)
        values = [word for word in tokens[index + 1 : end] if word != ","]
        index = end + 1
    else:
        values = list(tokens[index : index + 1])
        index += 1
        while tokens[index : index + 1] == [","]:
            values += tokens[index + 1 : index + 2]
            index += 2
    return tuple(value.strip('"') for value in values), negated, index


def accept_rules(direction: Direction, opening: Opening, members: Ranges | None = None) -> list[str]:
    """Return the rules that let the overlay pass a chain that is not ours.

    Args:
        members: the TCP ports that members reach; see `Closed.members`.
    """
    if direction is Direction.IN:
        return [written(rule) for rule in admitted(opening, members)]
    interface, network = f'"{opening.interface}"', opening.network
    match = {
        Direction.OUT: f"oifname {interface} ip daddr {network}",
        Direction.THROUGH: f"iifname {interface} oifname {interface} ip saddr {network} ip daddr {network}",
    }[direction]
    return [f'{match} accept comment "{direction.comment(opening)}"']


def insert_command(
    table: Table, chain: Chain, direction: Direction, opening: Opening, members: Ranges | None = None
) -> str:
    """Return the script that makes our accepts the chain's first rules."""
    place = f"insert rule {table.family} {table.name} {chain.name}"
    return "".join(f"{place} {rule}\n" for rule in reversed(accept_rules(direction, opening, members)))


def delete_command(table: Table, chain: Chain, rule: Rule) -> str:
    """Return the script line that deletes exactly this rule."""
    return f"delete rule {table.family} {table.name} {chain.name} handle {rule.where}\n"


def written(rule: OwnRule) -> str:
    """Return one of our rules as nft reads it."""
    words = [
        f'iifname "{rule.iif}"' if rule.iif else "",
        f'iifname != {{ "lo", "{rule.outside}" }}' if rule.outside else "",
        f'oifname "{rule.oif}"' if rule.oif else "",
        f"meta nfproto {_NFPROTO[rule.family]}" if rule.family and not rule.target else "",
        f"ip saddr {rule.source}" if rule.source else "",
        f"{family_of(rule.target)} daddr {'!= ' if rule.elsewhere else ''}{rule.target}" if rule.target else "",
        f"{rule.protocol} dport {_set(rule.ports)}" if rule.ports else "",
        f"meta l4proto {rule.protocol}" if rule.protocol and not rule.ports and rule.opens is None else "",
        f"tcp flags & (fin | syn | rst | ack) {'==' if rule.opens else '!='} syn" if rule.opens is not None else "",
        "icmp type redirect" if rule.redirect else "",
        "ct state established,related" if rule.known else "",
        rule.verdict,
        f'comment "{rule.comment}"',
    ]
    return " ".join(word for word in words if word)


_NFPROTO = {IPV4: "ipv4", IPV6: "ipv6"}


def _set(ports: Ranges) -> str:
    return f"{{ {described(ports)} }}"


def own_table_script(opening: Opening, closed: Closed) -> str:
    """Return the script that replaces our table in one transaction, whether or not it exists."""
    lines = [f"add table inet {OWN_TABLE}", f"delete table inet {OWN_TABLE}", f"table inet {OWN_TABLE} {{"]
    for chain, rules in own_rules(opening, closed).items():
        lines.append(f"chain {chain} {{ type filter hook {chain} priority -5; policy accept;")
        lines += [written(rule) for rule in rules]
        lines.append("}")
    return "\n".join([*lines, "}", ""])


def own_table_in_place(listing: str, opening: Opening, closed: Closed) -> bool:
    """Return whether our table is as `own_table_script` creates it, judged by the comments and their order."""
    wanted = [rule.comment for rules in own_rules(opening, closed).values() for rule in rules]
    return own_table_comments(listing) == wanted


def own_table_comments(listing: str) -> list[str] | None:
    """Return the comments in our table, in order; None where there is no such table."""
    start = re.search(rf"^table inet {OWN_TABLE} \{{", listing, re.MULTILINE)
    if not start:
        return None
    end = listing.find("\n}", start.end())
    return _COMMENT.findall(listing[start.end() : end if end >= 0 else None])
