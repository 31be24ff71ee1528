"""The programs that hold a host's rules: nft, the two iptables, firewalld. Thin: they run, the pure modules decide.

host = Backends(run_program, Proc())
for table in host.tables():
    print(table.owner, table.table.name)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshray.firewall import iptables, nft
from meshray.firewall.opening import Opening, Way
from meshray.firewall.programs import Answer, Proc, Run
from meshray.firewall.ruleset import Chain, Rule, Table

FIREWALLD_TABLE = "firewalld"
#: firewalld's chain of this name, where it drives iptables and not nftables.
_FIREWALLD_CHAIN = "INPUT_ZONES"
_ZONE = "trusted"
#: iptables waits this long for the lock that all iptables share.
_LOCK_WAIT_S = "5"


@dataclass(frozen=True)
class HeldTable:
    """A table and the program through which it is changed."""

    owner: str
    table: Table

    @property
    def is_firewalld(self) -> bool:
        """firewalld writes this table again whenever it likes; it wants to be asked itself."""
        return self.table.name == FIREWALLD_TABLE or self.table.chain(_FIREWALLD_CHAIN) is not None

    def label(self, chain: Chain) -> str:
        """For log lines: ``nft inet filter input``, ``iptables-nft DOCKER-USER``."""
        place = f"{self.table.family} {self.table.name} " if self.owner == "nft" else ""
        return f"{self.owner} {place}{chain.name}"


class Backends:
    """Reads the host's rules and changes them. `problems` collects, in sentences, what could not be read."""

    def __init__(self, run: Run, proc: Proc) -> None:
        self._run = run
        self._proc = proc
        self._variants: dict[str, str] | None = None
        self.problems: list[str] = []

    def nft_listing(self) -> str | None:
        """The whole ruleset as text; None where there is no nft or it cannot be read."""
        answer = self._run(["nft", "-a", "-t", "list", "ruleset"], "")
        if not answer.ok and not answer.missing and "invalid option" in answer.error:
            answer = self._run(["nft", "-a", "list", "ruleset"], "")  # before nftables 0.9.3
        if answer.ok:
            return answer.out
        if not answer.missing:
            self.problems.append(f"the host's nftables rules cannot be read: {answer.cause}")
        return None

    def tables(self, listing: str | None) -> list[HeldTable]:
        """Every table that may hold back IPv4, each with the program that changes it."""
        native = nft.parse(listing or "")
        held = []
        for program in self._iptables(listing, native):
            answer = self._run([f"{program}-save", "-t", "filter"], "")
            table = iptables.parse(answer.out)
            if answer.missing:
                continue  # a kernel without nf_tables: there are no such rules
            if not answer.ok:
                self.problems.append(f"the host's {program} rules cannot be read: {answer.cause}")
            elif table.chains:
                held.append(HeldTable(program, table))
                if self.variants().get("nft") == program:
                    native = [other for other in native if not _made_by_iptables(other)]
        return held + [HeldTable("nft", table) for table in native]

    def further_tables(self) -> list[HeldTable]:
        """The tables raw and mangle of iptables-legacy, where they exist; nftables lists those of iptables-nft."""
        program = self.variants().get("legacy")
        names = [name for name in ("raw", "mangle") if self._proc.legacy_table_in_use(name)] if program else []
        saved = [(name, self._run([f"{program}-save", "-t", name], "")) for name in names]
        return [HeldTable(str(program), iptables.parse(answer.out, name)) for name, answer in saved if answer.ok]

    def variants(self) -> dict[str, str]:
        """Which programs there are: ``{"nft": "iptables-nft", "legacy": "iptables"}``, or fewer."""
        if self._variants is None:
            found: dict[str, str] = {}
            for program in ("iptables-nft", "iptables-legacy", "iptables"):
                answer = self._run([program, "--version"], "")
                if answer.ok:
                    found.setdefault("nft" if "nf_tables" in answer.out else "legacy", program)
            self._variants = found
        return self._variants

    def _iptables(self, listing: str | None, native: Sequence[Table]) -> list[str]:
        """The iptables whose filter table exists; asking for one that does not would make it."""
        programs = []
        if listing is None or any(_made_by_iptables(table) for table in native):
            programs += [self.variants()["nft"]] if "nft" in self.variants() else []
        if self._proc.legacy_table_in_use() and "legacy" in self.variants():
            programs.append(self.variants()["legacy"])
        return programs

    def nft_script(self, script: str) -> Answer:
        """Runs a script as one transaction."""
        return self._run(["nft", "-f", "-"], script)

    def iptables(self, program: str, arguments: Sequence[str]) -> Answer:
        """Runs one iptables command, waiting for the shared lock."""
        return self._run([program, "-w", _LOCK_WAIT_S, *arguments], "")

    def iptables_restore(self, program: str, script: str) -> Answer:
        """Runs a script of iptables-save's form as one transaction; what it does not name stays."""
        return self._run([f"{program}-restore", "-w", _LOCK_WAIT_S, "--noflush"], script)

    def iptables_table(self, program: str) -> tuple[Table | None, str]:
        """The filter table of this program (made by asking where there is none), or why it cannot be read."""
        answer = self._run([f"{program}-save", "-t", "filter"], "")
        return (iptables.parse(answer.out), "") if answer.ok else (None, answer.cause)

    def owners(self, held: Sequence[HeldTable]) -> list[str]:
        """The iptables programs through which rules of ours may be set, the one whose tables are in use first.

        Whether one works is only known when it was tried: a kernel without nf_tables has iptables-nft all the same.
        """
        variants = self.variants()
        found = [table.owner for table in held if table.owner != "nft"]
        found += [variants[kind] for kind in ("nft", "legacy") if kind in variants]
        return list(dict.fromkeys(found))

    def insert(self, held: HeldTable, chain: Chain, way: Way, opening: Opening) -> Answer:
        """Puts our accept before everything else in a chain of iptables."""
        return self.iptables(held.owner, iptables.insert_arguments(held.table, chain, way, opening))

    def delete(self, held: HeldTable, chain: Chain, rule: Rule) -> Answer:
        """Takes out exactly this rule."""
        if held.owner == "nft":
            return self.nft_script(nft.delete_command(held.table, chain, rule))
        return self.iptables(held.owner, iptables.delete_arguments(rule))

    def zone_of(self, interface: str) -> str:
        """firewalld's zone for this interface; empty: none, or firewalld does not answer."""
        answer = self._run(["firewall-cmd", f"--get-zone-of-interface={interface}"], "")
        return answer.out.strip() if answer.ok else ""

    def trust(self, interface: str) -> Answer:
        """Puts the interface into firewalld's trusted zone until its next reload."""
        return self._run(["firewall-cmd", f"--zone={_ZONE}", f"--add-interface={interface}"], "")

    def trusted_by_us(self, interface: str) -> bool:
        """Whether the interface is in the trusted zone until firewalld's next reload, where nobody else puts it."""
        if self.zone_of(interface) != _ZONE:
            return False
        query = ["firewall-cmd", "--permanent", f"--zone={_ZONE}", f"--query-interface={interface}"]
        return not self._run(query, "").ok

    def distrust(self, interface: str) -> bool:
        """Takes the interface out of the trusted zone, unless a user put it there for good; True when it did."""
        if not self.trusted_by_us(interface):
            return False
        return self._run(["firewall-cmd", f"--zone={_ZONE}", f"--remove-interface={interface}"], "").ok


def _made_by_iptables(table: Table) -> bool:
    bases = {chain.name for chain in table.chains if chain.hook}
    return (table.family, table.name) == ("ip", "filter") and bases <= {"INPUT", "FORWARD", "OUTPUT"}
