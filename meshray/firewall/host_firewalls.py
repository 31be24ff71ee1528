"""The firewalls of this host: the installed programs, and every table with the programs that change and manage it.

host = HostFirewalls(run_program, KernelState())
for host_table in host.tables(host.listing()):
    print(host_table.backend.name, host_table.table.name)
"""

from __future__ import annotations

from collections.abc import Sequence

from meshray.firewall.backends import nft
from meshray.firewall.backends.base import Backend, HostTable, Manager
from meshray.firewall.backends.firewalld import Firewalld
from meshray.firewall.backends.iptables import Iptables
from meshray.firewall.backends.ufw import Ufw
from meshray.firewall.host_programs import Run
from meshray.firewall.kernel_state import KernelState
from meshray.firewall.ruleset import Table


class HostFirewalls:
    """The host's rules. `problems` collects, in sentences, what could not be read.

    Attributes:
        nft: the backend of nftables.
        managers: the programs that manage tables; a table belongs to the first that claims it.
    """

    def __init__(self, run: Run, proc: KernelState) -> None:
        self._run = run
        self._proc = proc
        self._variants: dict[str, Iptables] | None = None
        self.nft = nft.Nft(run)
        self.managers: tuple[Manager, ...] = (Firewalld(run), Ufw())
        self.problems: list[str] = []

    def listing(self) -> str | None:
        """Return the whole ruleset of nftables as text; None where nft is missing or the ruleset cannot be read."""
        answer = self.nft.read()
        if answer.ok:
            return answer.out
        if not answer.missing:
            self.problems.append(f"the host's nftables rules cannot be read: {answer.cause}")
        return None

    def tables(self, listing: str | None) -> list[HostTable]:
        """Return every table that may drop IPv4 packets, each with the program that changes it."""
        native = nft.parse(listing or "")
        host_tables = []
        for program in self._iptables_in_use(listing, native):
            table, answer = program.read()
            if answer.missing:
                continue  # A kernel without nf_tables has no such rules.
            if table is None:
                self.problems.append(f"the host's {program.name} rules cannot be read: {answer.cause}")
            elif table.chains:
                host_tables.append(self._host_table(table, program))
                if self.variants().get("nft") is program:
                    native = [other for other in native if not _made_by_iptables(other)]
        return host_tables + [self._host_table(table, self.nft) for table in native]

    def further_tables(self, listing: str | None) -> list[HostTable]:
        """Return the tables that see packets before those of `tables`: netdev, and iptables-legacy's raw and mangle if
        they exist.

        nftables lists the tables of iptables-nft.
        """
        found = [self._host_table(table, self.nft) for table in nft.parse(listing or "", ("netdev",))]
        program = self.variants().get("legacy")
        names = [name for name in ("raw", "mangle") if self._proc.legacy_table_in_use(name)]
        saved = [program.read(name)[0] for name in names] if program else []
        return found + [self._host_table(table, program) for table in saved if program and table is not None]

    def _host_table(self, table: Table, backend: Backend) -> HostTable:
        return HostTable(table, backend, next((one for one in self.managers if one.manages(table)), None))

    def variants(self) -> dict[str, Iptables]:
        """Return the installed variants of iptables: ``{"nft": iptables-nft, "legacy": iptables}``, or fewer."""
        if self._variants is None:
            found: dict[str, Iptables] = {}
            for program in ("iptables-nft", "iptables-legacy", "iptables"):
                answer = self._run([program, "--version"], "")
                if answer.ok:
                    found.setdefault("nft" if "nf_tables" in answer.out else "legacy", Iptables(program, self._run))
            self._variants = found
        return self._variants

    def _iptables_in_use(self, listing: str | None, native: Sequence[Table]) -> list[Iptables]:
        """Return the iptables variants whose filter table exists, without a query that would create the table."""
        in_use = {
            "nft": listing is None or any(_made_by_iptables(table) for table in native),
            "legacy": self._proc.legacy_table_in_use(),
        }
        kinds = [kind for kind, is_used in in_use.items() if is_used]
        return [self.variants()[kind] for kind in kinds if kind in self.variants()]

    def iptables(self, host_tables: Sequence[HostTable]) -> list[Iptables]:
        """Return the iptables programs that may set our rules, beginning with the one whose tables are in use.

        Only a try shows whether a program works: iptables-nft is also installed where the kernel has no nf_tables.
        """
        variants = self.variants()
        found = [program for program, _ in tables_of_iptables(host_tables)]
        found += [variants[kind] for kind in ("nft", "legacy") if kind in variants]
        return list(dict.fromkeys(found))


def tables_of_iptables(host_tables: Sequence[HostTable]) -> list[tuple[Iptables, Table]]:
    """Return those of the tables that an iptables program changes."""
    return [(one.backend, one.table) for one in host_tables if isinstance(one.backend, Iptables)]


def _made_by_iptables(table: Table) -> bool:
    bases = {chain.name for chain in table.chains if chain.hook}
    return (table.family, table.name) == ("ip", "filter") and bases <= {"INPUT", "FORWARD", "OUTPUT"}
