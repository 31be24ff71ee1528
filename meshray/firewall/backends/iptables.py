"""iptables: read `iptables-save -t filter`, write argument lists. All but the class `Iptables` is pure.

Both variants, iptables-nft and iptables-legacy, work alike.

>>> table = parse('''*filter
... :INPUT DROP [0:0]
... -A INPUT -i lo -j ACCEPT
... COMMIT''')
>>> table.chains[0].policy, table.chains[0].rules[0].where
('drop', 'INPUT -i lo -j ACCEPT')
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from meshray.firewall.backends.base import Change, HostTable, Outcome
from meshray.firewall.closing import IPV4, IPV6, Closed, Ranges, digest, family_of
from meshray.firewall.host_programs import Answer, Run
from meshray.firewall.opening import Direction, Opening
from meshray.firewall.own_rules import ACCEPT, OwnRule, accepts_all, admission_comment, admitted, own_rules
from meshray.firewall.ruleset import Chain, Condition, Rule, Table

#: Docker's chain for rules of other programs; it survives a restart of Docker, and Docker calls it first.
DOCKER_USER = "DOCKER-USER"
#: Our chain, the first jump of INPUT: the rules of `own_rules` for its chain ``input``.
INPUT_CHAIN = "MESHRAY-INPUT"
#: Our chain for packets that come in over the overlay: the ports that members reach.
MEMBERS_CHAIN = "MESHRAY-MEMBERS"
_OWN_CHAINS = (INPUT_CHAIN, MEMBERS_CHAIN)
#: The time that iptables waits for the lock that all iptables processes share, seconds.
_LOCK_WAIT_S = "5"

_HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_VERDICTS = {
    "ACCEPT": "accept",
    "DROP": "drop",
    "REJECT": "drop",
    "QUEUE": "drop",
    "NFQUEUE": "drop",
    "TARPIT": "drop",
    "RETURN": "return",
}
_NON_TERMINATING = {"LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "CLASSIFY", "AUDIT"}
_KEYS = {
    "-i": "iif",
    "-o": "oif",
    "-s": "saddr",
    "-d": "daddr",
    "-p": "protocol",
    "--dport": "dport",
    "--dports": "dport",
    "--sport": "sport",
    "--sports": "sport",
    "--ctstate": "state",
    "--state": "state",
    "--icmp-type": "icmptype",
    "--dst-type": "targettype",
    "--pkt-type": "packettype",
    "--src-range": "saddr",
    "--dst-range": "daddr",
}
#: Options that modify a match and are not conditions themselves.
_MODIFIERS = {"-m", "--comment", "--reject-with", "--log-prefix", "--log-level"}


class Iptables:
    """A `Backend`: one of the programs named iptables or ip6tables."""

    def __init__(self, name: str, run: Run) -> None:
        self.name = name
        self._run = run

    @property
    def for_ipv6(self) -> Iptables:
        """Return the same program for IPv6."""
        return Iptables(self.name.replace("ip", "ip6", 1), self._run)

    def read(self, name: str = "filter") -> tuple[Table | None, Answer]:
        """Read a table, which creates it if it does not exist; None if that fails."""
        answer = self._run([f"{self.name}-save", "-t", name], "")
        return (parse(answer.out, name) if answer.ok else None), answer

    def place(self, table: Table, chain: Chain) -> str:
        """See `Backend.place`."""
        return chain.name if table.name == "filter" else f"-t {table.name} {chain.name}"

    def describe(self, rule: Rule) -> str:
        """See `Backend.describe`."""
        return f"rule {rule.where}"

    def open(self, host_table: HostTable, change: Change) -> Outcome:
        """See `Backend.open`. It deletes before it adds: a rule is deleted by its text, which may be the new rule's."""
        outcome = self.remove(host_table, change.gone)
        jumps, opening, members = members_jumps(host_table.table), change.opening, change.members
        if not any(direction is Direction.IN for _, direction in change.missing) and any(
            rule in jumps for _, rule in change.gone
        ):
            answer = self._restore(removal(host_table.table, [MEMBERS_CHAIN]))
            outcome.log += [f"{self.name} {MEMBERS_CHAIN}: removed"] if answer.ok else []
        for chain, direction in change.missing:
            if direction is Direction.IN and not accepts_all(opening, members):
                answer = self._restore(members_script(host_table.table, opening, members))
            else:
                answer = self._call(insert_arguments(host_table.table, chain, direction, opening))
            if answer.ok:
                outcome.log.append(host_table.opened(chain, direction))
            else:
                outcome.problems.append(host_table.still_drops(chain, direction, opening.interface, answer.cause))
        return outcome

    def remove(self, host_table: HostTable, rules: Sequence[tuple[Chain, Rule]]) -> Outcome:
        """See `Backend.remove`. The jumps to the chain of what members reach are removed with that chain."""
        outcome, jumps = Outcome(), members_jumps(host_table.table)
        for chain, rule in rules:
            if rule not in jumps:
                host_table.note_removal(outcome, chain, self._call(delete_arguments(rule)))
        return outcome

    def close(self, opening: Opening, closed: Closed) -> tuple[list[str], str]:
        """See `Backend.close`: by a chain of ours in INPUT. Nothing changes if the chain is in place."""
        ipv6 = self.name.startswith("ip6")
        table, read = self.read()
        if table is None:
            return [], read.cause
        if closing_in_place(table, opening, closed, ipv6=ipv6):
            return [], ""
        answer = self._restore(closing_script(table, opening, closed, ipv6=ipv6))
        return ([f"{self.name} {INPUT_CHAIN}: in place"], "") if answer.ok else ([], answer.cause)

    def contain(self, table: Table | None, opening: Opening) -> tuple[list[str], str]:
        """Keep forwarding inside the overlay; return what changed, and the reason if it failed.

        Args:
            table: the current filter table; None if there is none.
        """
        if table is not None:
            if guard_in_place(table, opening):
                return [], ""
            for _, rule in table.marked(f"{opening.mark} guard"):
                self._call(delete_arguments(rule))
        for arguments in guard_arguments(opening):
            answer = self._call(arguments)
            if not answer.ok:
                return [], answer.cause
        return [f"{self.name} FORWARD: only overlay to overlay is forwarded"], ""

    def remove_chains(self) -> tuple[list[str], str]:
        """Remove our chains; return what changed, and the reason if it failed."""
        table, answer = self.read()
        if table is not None:
            script = removal(table)
            if not script:
                return [], ""
            answer = self._restore(script)
            if answer.ok:
                return [f"{self.name}: meshray's chains removed"], ""
        return [], answer.cause

    def advise_port(self, table: Table, chain: Chain, protocol: str, port: int) -> list[str]:
        """See `Backend.advise_port`."""
        at = "-I INPUT" if table.name == "filter" else f"-t {table.name} -I {chain.name}"
        return [f"{self.name} {at} -p {protocol} --dport {port} -j ACCEPT"]

    def advise_address(self, table: Table, chain: Chain, address: str, *, inward: bool) -> list[str]:
        """See `Backend.advise_address`."""
        at = f"-I {chain.name}" if table.name == "filter" else f"-t {table.name} -I {chain.name}"
        return [f"{self.name} {at} {'-s' if inward else '-d'} {address} -j ACCEPT"]

    def advise_overlay(
        self, table: Table, chain: Chain, direction: Direction, opening: Opening, members: Ranges | None
    ) -> list[str]:
        """See `Backend.advise_overlay`."""
        matches = (
            admitted_matches(opening, members) if direction is Direction.IN else [" ".join(_match(direction, opening))]
        )
        return [f"{self.name} -t {table.name} -I {chain.name} {match} -j ACCEPT" for match in matches]

    def _call(self, arguments: Sequence[str]) -> Answer:
        """Run one command, waiting for the shared lock."""
        return self._run([self.name, "-w", _LOCK_WAIT_S, *arguments], "")

    def _restore(self, script: str) -> Answer:
        """Run a script in the form of iptables-save as one transaction; rules that it does not name are unchanged."""
        return self._run([f"{self.name}-restore", "-w", _LOCK_WAIT_S, "--noflush"], script)


def parse(saved: str, name: str = "filter") -> Table:
    """Return the filter table, or another one whose text this is; a table without chains if the text has none."""
    policies: dict[str, str] = {}
    rules: dict[str, list[Rule]] = {}
    for line in saved.splitlines():
        if line.startswith(":"):
            chain, _, rest = line[1:].partition(" ")
            policies[chain] = rest.split(" ")[0].lower()
        elif line.startswith("-A "):
            words = _words(line[3:])
            rules.setdefault(words[0], []).append(_rule(words))
    return Table(
        "iptables",
        name,
        tuple(
            Chain(chain, _HOOKS.get(chain, ""), policy, tuple(rules.get(chain, ())))
            for chain, policy in policies.items()
        ),
    )


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line) or [""]
    except ValueError:  # A comment with an unbalanced quote: the rule cannot be judged and is not ours.
        return [line.split(maxsplit=1)[0], "--unreadable"]


def _rule(words: Sequence[str]) -> Rule:
    verdict, comment = "", ""
    conditions: list[Condition] = []
    negated = False
    index = 1
    while index < len(words):
        option, value = words[index], words[index + 1] if index + 1 < len(words) else ""
        if option == "!":
            negated, index = True, index + 1
            continue
        if option in ("-j", "-g"):
            verdict = _verdict(option, value)
        elif option == "--comment":
            comment = value
        elif option in _KEYS:
            values = tuple(value.lower().split(",") if option not in ("-i", "-o") else [value])
            conditions.append(Condition(_KEYS[option], values, negated))
        elif option.startswith("-") and option not in _MODIFIERS:
            conditions.append(Condition("unknown", (option,)))
        negated = False
        index += 2 if value and not value.startswith("-") and value != "!" else 1
    return Rule(verdict, tuple(conditions), comment, shlex.join(words))


def _verdict(option: str, target: str) -> str:
    if target in _NON_TERMINATING:
        return ""
    return _VERDICTS.get(target, f"{'goto' if option == '-g' else 'jump'} {target}")


def insertion_chain(table: Table, chain: Chain) -> str:
    """Return the chain for our accept: Docker's chain for such rules where Docker calls it first, else the chain
    itself."""
    first = next((rule for rule in chain.rules if not rule.comment.startswith("meshray ")), None)
    calls_docker = first is not None and not first.conditions and first.verdict == f"jump {DOCKER_USER}"
    return DOCKER_USER if calls_docker and table.chain(DOCKER_USER) else chain.name


def insert_arguments(table: Table, chain: Chain, direction: Direction, opening: Opening) -> list[str]:
    """Return the arguments that make our accept the first rule. `members_script` adds the ports if not all are open."""
    return _insert(insertion_chain(table, chain), 1, _match(direction, opening), "ACCEPT", direction.comment(opening))


def _match(direction: Direction, opening: Opening) -> list[str]:
    interface, network = opening.interface, str(opening.network)
    return {
        Direction.IN: ["-i", interface, "-s", network, "-d", network],
        Direction.OUT: ["-o", interface, "-d", network],
        Direction.THROUGH: ["-i", interface, "-o", interface, "-s", network, "-d", network],
    }[direction]


def _insert(chain: str, position: int, match: Sequence[str], target: str, comment: str) -> list[str]:
    return ["-I", chain, str(position), *match, "-m", "comment", "--comment", comment, "-j", target]


def delete_arguments(rule: Rule) -> list[str]:
    """Return the arguments that delete exactly this rule."""
    return ["-D", *shlex.split(rule.where)]


def guard_comments(opening: Opening) -> list[tuple[str, str]]:
    """Return (chain, comment) for each of `guard_arguments`, in order, to check that they are in place."""
    return [(arguments[1], arguments[arguments.index("--comment") + 1]) for arguments in guard_arguments(opening)]


def guard_arguments(opening: Opening) -> list[list[str]]:
    """Return the rules that replace our nftables table on a hub without nft: `own_rules` for forward and output."""
    interface, network, mark = opening.interface, str(opening.network), opening.mark
    through = _match(Direction.THROUGH, opening)
    redirects = ["-o", interface, "-p", "icmp", "-m", "icmp", "--icmp-type", "redirect"]
    return [
        _insert("FORWARD", 1, through, "ACCEPT", f"{mark} guard through {network}"),
        _insert("FORWARD", 2, ["-i", interface], "DROP", f"{mark} guard nothing leaves the overlay here"),
        _insert("FORWARD", 3, ["-o", interface], "DROP", f"{mark} guard nothing enters the overlay here"),
        _insert("OUTPUT", 1, redirects, "DROP", f"{mark} guard no redirects"),
    ]


def guard_in_place(table: Table, opening: Opening) -> bool:
    """Return whether the guard's rules come before any other rule of their chains; later drops would be ineffective."""
    wanted: dict[str, list[str]] = {}
    for name, comment in guard_comments(opening):
        wanted.setdefault(name, []).append(comment)
    return all(
        (chain := table.chain(name)) is not None and [rule.comment for rule in chain.rules[: len(comments)]] == comments
        for name, comments in wanted.items()
    )


def _closing_comment(opening: Opening, rules: Sequence[str]) -> str:
    """Return the comment of the jump into our chain. It does not begin with `Opening.mark`, which marks accepts."""
    return f"{closing_mark(opening.interface)} {digest(tuple(rules))} {opening.network}"


def closing_mark(interface: str) -> str:
    """Return the beginning of the comment of the jump into our chain."""
    return f"meshray guard {interface}"


def _closing_rules(opening: Opening, closed: Closed, *, ipv6: bool) -> list[str]:
    """Return the rules of `own_rules` for ``input``; where those accept, ours return to INPUT."""
    family = IPV6 if ipv6 else IPV4
    found = [rule for rule in own_rules(opening, closed)["input"] if _family(rule) in ("", family)]
    return [
        *_lines([rule for rule in found if not rule.outside], "RETURN"),
        "-i lo -j RETURN",
        f"-i {opening.interface} -j RETURN",
        *_lines([rule for rule in found if rule.outside], "RETURN"),
    ]


def _family(rule: OwnRule) -> str:
    return family_of(rule.target) if rule.target else rule.family


def _lines(rules: Sequence[OwnRule], accepting: str) -> list[str]:
    """Return the rules as iptables-save writes them, one for each range of ports."""
    lines = []
    for rule in rules:
        words = [
            f"-s {rule.source}" if rule.source else "",
            f"{'! ' if rule.elsewhere else ''}-d {rule.target}" if rule.target else "",
            f"-i {rule.iif}" if rule.iif else "",
            f"-p {rule.protocol}" if rule.protocol else "",
        ]
        opens = {True: "--syn", False: "! --syn", None: ""}[rule.opens]
        known = "-m conntrack --ctstate RELATED,ESTABLISHED" if rule.known else ""
        target = f"-j {accepting if rule.verdict == ACCEPT else 'DROP'}"
        protocol = f"-m {rule.protocol}" if rule.ports or opens else ""
        for ports in [f"--dport {first}:{last}" for first, last in rule.ports] or [""]:
            lines.append(" ".join(word for word in (*words, protocol, ports, opens, known, target) if word))
    return lines


def closing_script(table: Table, opening: Opening, closed: Closed, *, ipv6: bool) -> str:
    """Return an ``iptables-restore --noflush`` script that replaces our chain and makes it the first jump of INPUT."""
    rules = _closing_rules(opening, closed, ipv6=ipv6)
    jump = f'-I INPUT 1 -m comment --comment "{_closing_comment(opening, rules)}" -j {INPUT_CHAIN}'
    added = [f"-A {INPUT_CHAIN} {rule}" for rule in rules]
    return _script([f":{INPUT_CHAIN} - [0:0]", *added, *_jumps_out(table, INPUT_CHAIN), jump])


def closing_in_place(table: Table, opening: Opening, closed: Closed, *, ipv6: bool) -> bool:
    """Return whether our chain is whole and INPUT jumps to it before any rule that is not ours."""
    chain, ours = table.chain("INPUT"), table.chain(INPUT_CHAIN)
    if chain is None or ours is None:
        return False
    rules = _closing_rules(opening, closed, ipv6=ipv6)
    first = next((rule for rule in chain.rules if not rule.comment.startswith(opening.mark)), None)
    return len(ours.rules) == len(rules) and first is not None and first.comment == _closing_comment(opening, rules)


def members_script(table: Table, opening: Opening, members: Ranges | None) -> str:
    """Return an ``iptables-restore --noflush`` script that replaces the chain of what members reach, and jumps to it.

    The jump is the first rule of INPUT, after the jump to `INPUT_CHAIN` if there is one. It is one transaction.
    """
    comment = admission_comment(opening, members)
    rules = [f"-A {MEMBERS_CHAIN} {line}" for line in _lines(admitted(opening, members), "ACCEPT")]
    position = 2 if _jumps(table, INPUT_CHAIN) else 1
    jump = f'-I INPUT {position} -i {opening.interface} -m comment --comment "{comment}" -j {MEMBERS_CHAIN}'
    return _script([f":{MEMBERS_CHAIN} - [0:0]", *rules, *_jumps_out(table, MEMBERS_CHAIN), jump])


def removal(table: Table, chains: Sequence[str] = _OWN_CHAINS) -> str:
    """Return an ``iptables-restore --noflush`` script that removes our chains; empty if there are none."""
    ours = [name for name in chains if table.chain(name)]
    jumps = [line for name in ours for line in _jumps_out(table, name)]
    return _script([*jumps, *(f"{option} {name}" for name in ours for option in ("-F", "-X"))]) if ours else ""


def admitted_matches(opening: Opening, members: Ranges | None) -> list[str]:
    """Return the matches of the rules of `members_script`, for a user to type."""
    return [line.removesuffix(" -j ACCEPT") for line in _lines(admitted(opening, members), "ACCEPT")]


def members_jumps(table: Table) -> list[Rule]:
    """Return the rules of INPUT that jump to the chain of what members reach."""
    return _jumps(table, MEMBERS_CHAIN)


def _jumps(table: Table, target: str) -> list[Rule]:
    chain = table.chain("INPUT")
    return [rule for rule in (chain.rules if chain else ()) if rule.verdict == f"jump {target}"]


def _jumps_out(table: Table, target: str) -> list[str]:
    # iptables-restore understands double quotes only, so `Rule.where` cannot be used.
    return [
        f'-D INPUT {_in_on(rule)}-m comment --comment "{rule.comment}" -j {target}' for rule in _jumps(table, target)
    ]


def _in_on(rule: Rule) -> str:
    return "".join(f"-i {value} " for match in rule.conditions if match.key == "iif" for value in match.values)


def _script(lines: Sequence[str]) -> str:
    return "\n".join(["*filter", *lines, "COMMIT", ""])
