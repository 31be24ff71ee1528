"""The rules by which meshray itself drops packets: its own nftables table, or iptables rules where nft does not work.

The host forwards only from overlay to overlay. Only the overlay and the host itself reach Ray's ports and the overlay's
addresses. All these rules drop packets, so it does not matter what other tables accept.

meshray finds a working program by applying the actual rules: with nft, then with the iptables whose tables are in use,
then with the others. A program that exists, or prints its version, proves nothing about the kernel. Where the kernel
supports it, the agent also owns a table with the same rules (`meshray.firewall.owned_table`), which no other process
can flush.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshray.firewall.backends import iptables, nft
from meshray.firewall.backends.base import HostTable
from meshray.firewall.closing import Closed, described
from meshray.firewall.host_firewalls import HostFirewalls, tables_of_iptables
from meshray.firewall.host_programs import Run, run_program
from meshray.firewall.kernel_state import KernelState
from meshray.firewall.opening import Opening
from meshray.firewall.own_rules import CLOSED
from meshray.firewall.owned_table import OwnedTable
from meshray.firewall.ruleset import Table
from meshray.model.node import HUB_FORWARDS
from meshray.model.problem import Problem

INSTALL = "apt-get install nftables"
#: The codes of the doctor's checks for failures here.
GUARD = "guard"


class Guard:
    """The guard of one node.

    Attributes:
        closed: the ports to close.
        problems: the failures of the last call.
        by_iptables: rules of iptables replace our own nftables table.
    """

    def __init__(self, opening: Opening, host: HostFirewalls, proc: KernelState, owned: OwnedTable | None) -> None:
        self.opening = opening
        self._host = host
        self._proc = proc
        self._owned = owned
        self.closed = Closed()
        self.problems: list[Problem] = []
        self.by_iptables = False

    def close(self, closed: Closed) -> list[str]:
        """Close exactly these ports, without reading the rules first; return what changed."""
        self.closed, self.problems = closed, []
        self._write_owned_table()
        log, cause = self._host.nft.close(self.opening, closed)
        if log:
            ports = described((*closed.always, *(pair for _, found in closed.in_use for pair in found)))
            return [f"{line}, TCP {ports} closed to all but the overlay" for line in log]
        return self._close_by_iptables(self._host.tables(None), f"nft: {cause}" if cause else "")

    def keep(self, listing: str | None, host_tables: Sequence[HostTable]) -> tuple[bool, list[str]]:
        """Add what is missing; return whether forwarding is safe, and what changed."""
        self.problems, self.by_iptables = [], False
        self._write_owned_table()
        cause = ""
        if listing is not None:
            if nft.own_table_in_place(listing, self.opening, self.closed):
                return True, []
            log, refusal = self._host.nft.close(self.opening, self.closed)
            if log:
                return True, log
            cause = f"nft refused the table inet {nft.OWN_TABLE}: {refusal}"
        self.by_iptables = True
        safe, forwarding = self._forward_by_iptables(host_tables, cause)
        return safe, forwarding + self._close_by_iptables(host_tables, cause)

    def _write_owned_table(self) -> None:
        """Write the owned table as well. It ends with the agent, so the table that others can change is needed too."""
        if self._owned is not None:
            self._owned.put(self.opening, self.closed)

    def remove(self, listing: str | None, host_tables: Sequence[HostTable]) -> list[str]:
        """Remove the guard's rules, except those with `Opening.mark`, which `Firewall.remove` removes."""
        self.problems = []
        if self._owned is not None:
            self._owned.end()
        log = []
        for program, table in tables_of_iptables(host_tables):
            if table.chain(iptables.INPUT_CHAIN) or table.chain(iptables.MEMBERS_CHAIN):
                log += self._remove_chains(program)
            if table.chain(iptables.INPUT_CHAIN) and self._proc.has_ipv6():
                log += self._remove_chains(program.for_ipv6)
        if nft.own_table_comments(listing or "") is not None:
            removed, cause = self._host.nft.remove_own_table()
            log += removed
            if cause:
                self._add_problem(f"nft refused to remove the table inet {nft.OWN_TABLE}: {cause}")
        return log

    def _add_problem(self, text: str, code: str = GUARD, fix: str = "meshray doctor") -> None:
        self.problems.append(Problem(code, text, fix=fix))

    def _forward_by_iptables(self, host_tables: Sequence[HostTable], cause: str) -> tuple[bool, list[str]]:
        """Guard forwarding by iptables. A node that is not a hub needs no rule: its interface does not forward."""
        if not self.opening.forwards:
            return True, []
        causes = [cause] if cause else []
        tables = dict(tables_of_iptables(host_tables))
        for program in self._host.iptables(host_tables):
            log, failed = program.contain(tables.get(program), self.opening)
            if not failed:
                return True, log
            causes.append(f"{program.name}: {failed}")
        if causes:
            self._add_problem(f"forwarding cannot be kept inside the overlay: {'; '.join(causes)}", HUB_FORWARDS)
        else:
            self._add_problem(
                "this node cannot be a hub: neither nft nor iptables is installed, which keeps forwarding inside the "
                f"overlay ({INSTALL})",
                HUB_FORWARDS,
                f"{INSTALL}, then meshray down; meshray up",
            )
        return False, []

    def _close_by_iptables(self, host_tables: Sequence[HostTable], cause: str) -> list[str]:
        """Close the ports by iptables. ``cause`` is the reason why nft failed, if it was tried."""
        causes = [cause] if cause else []
        for program in self._host.iptables(host_tables):
            log, failed = program.close(self.opening, self.closed)
            if failed:
                causes.append(f"{program.name}: {failed}")
                continue
            if self._proc.has_ipv6():
                changed, failed = program.for_ipv6.close(self.opening, self.closed)
                log += changed
                if failed:
                    self._report_open_ports("IPv6 network", failed)
            return log
        self._report_open_ports("network", "; ".join(causes) or f"neither nft nor iptables is installed ({INSTALL})")
        return []

    def _report_open_ports(self, networks: str, cause: str) -> None:
        if self.closed:
            when = " once the agent has ended" if self._owned is not None and self._owned.exists else ""
            self._add_problem(
                f"Ray's ports are open to every {networks} that this machine is in{when}: {cause}", fix=INSTALL
            )

    def _remove_chains(self, program: iptables.Iptables) -> list[str]:
        log, cause = program.remove_chains()
        if cause:
            self._add_problem(f"{program.name} could not remove meshray's chains: {cause}")
        return log


@dataclass(frozen=True)
class GuardState:
    """Whether Ray's ports are closed to all but the overlay.

    Attributes:
        how: ``nft`` or ``iptables``, whose rules close them; empty: they are open.
        why: a sentence with the reason why they are open, or open over IPv6; empty if all is closed.
    """

    how: str
    why: str


def guard_state(interface: str, *, run: Run = run_program, proc: Path = Path("/proc")) -> GuardState:
    """Read the state from the host's rules, with or without an agent. Blocks for some ten milliseconds; needs root."""
    kernel = KernelState(proc)
    host = HostFirewalls(run, kernel)
    listing = host.listing()
    comments = nft.own_table_comments(listing or "")
    if any(comment.startswith(f"meshray {interface}: {CLOSED} ") for comment in comments or ()):
        return GuardState("nft", "")
    for program, table in tables_of_iptables(host.tables(listing)):
        if _closes(table, interface):
            return GuardState("iptables", _missing_ipv6(program.for_ipv6, interface) if kernel.has_ipv6() else "")
    if host.problems:
        return GuardState("", "; ".join(host.problems))
    if listing is None and not host.variants():
        return GuardState("", f"neither nft nor iptables is installed ({INSTALL})")
    return GuardState("", "no rule of meshray closes them")


def _closes(table: Table, interface: str) -> bool:
    chain = table.chain("INPUT")
    return any(rule.comment.startswith(iptables.closing_mark(interface)) for rule in (chain.rules if chain else ()))


def _missing_ipv6(program: iptables.Iptables, interface: str) -> str:
    table, answer = program.read()
    if table is None:
        return f"not for IPv6: {answer.cause}"
    return "" if _closes(table, interface) else f"not for IPv6: {program.name} has no rule of meshray"
