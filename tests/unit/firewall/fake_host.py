"""A host's firewall programs, with state: `nft -f -`, `iptables -I` and `firewall-cmd` add rules, which can be listed.

>>> host = FakeHost(programs={"nft"})
>>> host.nft("inet", "filter", "input", policy="drop")
>>> host(["nft", "-f", "-"], 'insert rule inet filter input iifname "x" accept\\n').code
0
>>> "iifname" in host(["nft", "-a", "-t", "list", "ruleset"], "").out
True
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from meshray.firewall.host_programs import Answer

OK = Answer(0, "", "")
DENIED = Answer(1, "", "Operation not permitted (you must be root)\nnetlink: Error: cache initialization failed\n")
BROKEN = Answer(1, "", "netlink: Error: cache initialization failed: Invalid argument\n")


@dataclass
class FakeChain:
    header: str
    rules: list[tuple[int, str]] = field(default_factory=list)


class FakeHost:
    """Callable like `programs.run_program`. `changes` counts the commands that changed something."""

    def __init__(self, programs: Iterable[str], *, root: bool = True, old_nft: bool = False) -> None:
        self.programs = set(programs)
        self.changes = 0
        self.tables: dict[tuple[str, str], dict[str, FakeChain]] = {}
        #: per program: chain → (policy or "-", its rules as `iptables-save` writes them)
        self.iptables: dict[str, dict[str, tuple[str, list[str]]]] = {}
        self.zones: dict[str, str] = {}
        self.permanent: set[str] = set()
        #: Tables that only their owner may change (firewalld from version 2.1 on).
        self.owned: set[str] = set()
        #: Programs that print their version and fail at everything else: the kernel lacks what they drive.
        self.broken: set[str] = set()
        self._root = root
        self._old_nft = old_nft
        self._handle = 0

    def nft(
        self, family: str, table: str, chain: str, *rules: str, hook: str = "input", policy: str = "accept"
    ) -> None:
        """Add a base chain, or with hook="" a chain to jump to."""
        header = f"type filter hook {hook} priority filter; policy {policy};" if hook else ""
        made = self.tables.setdefault((family, table), {})[chain] = FakeChain(header)
        made.rules = [(self._next(), rule) for rule in rules]

    def __call__(self, argv: Sequence[str], stdin: str) -> Answer:
        program = argv[0]
        if program.removesuffix("-save").removesuffix("-restore") not in self.programs:
            return Answer(127, "", f"{program}: not found")
        if argv[1:] == ["--version"]:
            return Answer(0, f"iptables v1.8.9 ({'legacy' if 'legacy' in program else 'nf_tables'})\n", "")
        if not self._root:
            return DENIED
        if program.removesuffix("-save").removesuffix("-restore") in self.broken:
            return BROKEN
        if program == "nft":
            return self._nft(argv[1:], stdin)
        if program == "firewall-cmd":
            return self._firewalld(argv[1:])
        if program.endswith("-restore"):
            return self._restore(program.removesuffix("-restore"), argv[1:], stdin)
        return self._save(program) if program.endswith("-save") else self._iptables(program, argv[1:])

    def listing(self) -> str:
        lines = []
        for (family, table), chains in self.tables.items():
            lines.append(f"table {family} {table} {{ # handle 1")
            for name, chain in chains.items():
                lines.append(f"\tchain {name} {{ # handle 1")
                lines += [f"\t\t{chain.header}"] if chain.header else []
                lines += [f"\t\t{rule} # handle {handle}" for handle, rule in chain.rules]
                lines.append("\t}\n")
            lines.append("}")
        return "\n".join(lines) + "\n"

    def _next(self) -> int:
        self._handle += 1
        return self._handle

    def _nft(self, words: Sequence[str], stdin: str) -> Answer:
        if "list" in words:
            if self._old_nft and "-t" in words:
                return Answer(1, "", "nft: invalid option -- 't'\n")
            return Answer(0, self.listing(), "")
        if any(f" {table} " in stdin for table in self.owned):
            return Answer(1, "", "/dev/stdin:1:1-9: Error: Could not process rule: Operation not permitted\n")
        self.changes += 1
        block = re.search(r"^table (\S+) (\S+) \{\n(.*)^\}", stdin, re.MULTILINE | re.DOTALL)
        lines = stdin.splitlines() if not block else [line for line in stdin.splitlines() if "delete table" in line]
        for line in lines:
            self._command(line)
        if block:
            self._make(block[1], block[2], block[3])
        return OK

    def _command(self, line: str) -> None:
        words = line.split(maxsplit=5)
        if words[:2] == ["insert", "rule"]:
            self.tables[words[2], words[3]][words[4]].rules.insert(0, (self._next(), words[5]))
        elif words[:2] == ["delete", "rule"]:
            chain = self.tables[words[2], words[3]][words[4]]
            handle = int(words[5].split()[1])
            assert handle in dict(chain.rules)
            chain.rules = [rule for rule in chain.rules if rule[0] != handle]
        elif words[:2] == ["delete", "table"]:
            self.tables.pop((words[2], words[3]), None)

    def _make(self, family: str, table: str, body: str) -> None:
        chain = FakeChain("")
        for line in body.splitlines():
            opened = re.match(r"chain (\S+) \{ (.*)", line)
            if opened:
                chain = self.tables.setdefault((family, table), {})[opened[1]] = FakeChain(opened[2])
            elif line != "}":
                chain.rules.append((self._next(), line))

    def _save(self, program: str) -> Answer:
        chains = self.iptables.get(program.removesuffix("-save"), {})
        lines = ["*filter", *(f":{name} {policy} [0:0]" for name, (policy, _) in chains.items())]
        lines += [f"-A {name} {rule}" for name, (_, rules) in chains.items() for rule in rules]
        return Answer(0, "\n".join([*lines, "COMMIT", ""]), "") if chains else OK

    def _restore(self, program: str, words: Sequence[str], script: str) -> Answer:
        """Restore as iptables-restore does: all lines or none."""
        assert words == ["-w", "5", "--noflush"]
        chains = {name: (policy, list(rules)) for name, (policy, rules) in self.iptables.get(program, {}).items()}
        for name in ("INPUT", "FORWARD", "OUTPUT"):
            chains.setdefault(name, ("ACCEPT", []))
        for line in script.splitlines():
            # It understands double quotes only.
            words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
            if line.startswith(":"):
                chains[words[0][1:]] = ("-", [])
            elif words[0] in ("-A", "-I"):
                rules = chains[words[1]][1]
                rules.insert(0 if words[0] == "-I" else len(rules), shlex.join(words[3 if words[0] == "-I" else 2 :]))
            elif words[0] == "-D":
                if shlex.join(words[2:]) not in chains[words[1]][1]:
                    return Answer(2, "", "iptables-restore: line 2 failed")
                chains[words[1]][1].remove(shlex.join(words[2:]))
            elif words[0] == "-F":
                chains[words[1]][1].clear()
            elif words[0] == "-X":
                del chains[words[1]]
        self.iptables[program] = chains
        self.changes += 1
        return OK

    def _iptables(self, program: str, words: Sequence[str]) -> Answer:
        assert words[:2] == ["-w", "5"]
        empty: tuple[str, list[str]] = ("ACCEPT", [])
        rules = self.iptables.setdefault(program, {}).setdefault(words[3], empty)[1]
        self.changes += 1
        if words[2] == "-I":
            rules.insert(int(words[4]) - 1, shlex.join(words[5:]))
        else:
            rules.remove(shlex.join(words[4:]))
        return OK

    def _firewalld(self, words: Sequence[str]) -> Answer:
        option, _, interface = words[-1].partition("=")
        if option == "--get-zone-of-interface":
            zone = self.zones.get(interface, "")
            return Answer(0, f"{zone}\n", "") if zone else Answer(2, "no zone\n", "")
        if option == "--query-interface":
            return Answer(0 if interface in self.permanent else 1, "", "")
        self.changes += 1
        rules = self.tables["inet", "firewalld"]["zones"].rules
        if option == "--add-interface":
            self.zones[interface] = "trusted"
            rules.insert(0, (self._next(), f'iifname "{interface}" goto trusted'))
        else:
            del self.zones[interface]
            del rules[0]
        return OK
