"""What meshray itself forbids on a host: its own nftables table, or rules of iptables where nft does not work.

Forwarded is only what goes from overlay to overlay. And nobody but the overlay and the host itself reaches Ray's ports
or the overlay's addresses. All of that are drops, so it does not matter what other tables accept.

Which program can do it is tried with the very rules: nft, then the iptables whose tables are in use, then the others.
That a program exists, or tells its version, says nothing of the kernel. Where the kernel can do it, the same rules
stand in a table that the agent owns as well (`meshray.firewall.owned_table`), which nobody else can flush.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshray.firewall import iptables, nft
from meshray.firewall.backends import Backends, HeldTable
from meshray.firewall.closing import Closed, described
from meshray.firewall.opening import Opening
from meshray.firewall.own_rules import CLOSED
from meshray.firewall.owned_table import OwnedTable
from meshray.firewall.programs import Proc, Run, run_program
from meshray.model.node import HUB_FORWARDS
from meshray.model.problem import Problem

INSTALL = "apt-get install nftables"
#: The doctor's checks about what fails here.
GUARD = "guard"


class Guard:
    """One node's.

    Attributes:
        closed: the ports that are to be closed.
        problems: what the last call could not do.
    """

    def __init__(self, opening: Opening, host: Backends, proc: Proc, owned: OwnedTable | None) -> None:
        self.opening = opening
        self._host = host
        self._proc = proc
        self._owned = owned
        self.closed = Closed()
        self.problems: list[Problem] = []

    def close(self, closed: Closed) -> list[str]:
        """Closes these ports and no others, without looking first; returns what changed."""
        self.closed, self.problems = closed, []
        self._own()
        answer = self._host.nft_script(nft.own_table_script(self.opening, closed))
        if answer.ok:
            ports = described((*closed.always, *(pair for _, found in closed.heard for pair in found)))
            return [f"nft: table inet {nft.OWN_TABLE} in place, TCP {ports} closed to all but the overlay"]
        return self._close_by_iptables(self._host.tables(None), "" if answer.missing else f"nft: {answer.cause}")

    def keep(self, listing: str | None, held: Sequence[HeldTable]) -> tuple[bool, list[str]]:
        """Puts in place what is missing: (whether forwarding is safe, what changed)."""
        self.problems = []
        self._own()
        cause = ""
        if listing is not None:
            if nft.own_table_in_place(listing, self.opening, self.closed):
                return True, []
            answer = self._host.nft_script(nft.own_table_script(self.opening, self.closed))
            if answer.ok:
                return True, [f"nft: table inet {nft.OWN_TABLE} in place"]
            cause = f"nft refused the table inet {nft.OWN_TABLE}: {answer.cause}"
        safe, forwarding = self._forward_by_iptables(held, cause)
        return safe, forwarding + self._close_by_iptables(held, cause)

    def _own(self) -> None:
        """Beside what everybody may change, and no substitute: it ends with the agent."""
        if self._owned is not None:
            self._owned.put(self.opening, self.closed)

    def remove(self, listing: str | None, held: Sequence[HeldTable]) -> list[str]:
        """Takes all of it away but what carries `Opening.mark`, which is removed as every rule of ours is."""
        self.problems = []
        if self._owned is not None:
            self._owned.end()
        log = []
        for ours in held:
            if ours.table.chain(iptables.INPUT_CHAIN):
                log += [line for program in self._programs(ours.owner) for line in self._open_again(program)]
            elif ours.table.chain(iptables.MEMBERS_CHAIN):
                log += self._open_again(ours.owner)
        if nft.own_table_comments(listing or "") is not None:
            answer = self._host.nft_script(f"delete table inet {nft.OWN_TABLE}\n")
            if answer.ok:
                log.append(f"nft: table inet {nft.OWN_TABLE} removed")
            else:
                self._failed(f"nft refused to remove the table inet {nft.OWN_TABLE}: {answer.cause}")
        return log

    def _failed(self, text: str, code: str = GUARD, fix: str = "meshray doctor") -> None:
        self.problems.append(Problem(code, text, fix=fix))

    def _programs(self, owner: str) -> list[str]:
        return [owner, *([owner.replace("ip", "ip6", 1)] if self._proc.has_ipv6() else [])]

    def _forward_by_iptables(self, held: Sequence[HeldTable], cause: str) -> tuple[bool, list[str]]:
        """A node that is no hub needs no rule: its interface simply does not forward."""
        if not self.opening.forwards:
            return True, []
        causes = [cause] if cause else []
        for owner in self._host.owners(held):
            log, failed = self._forward_by(owner, held)
            if not failed:
                return True, log
            causes.append(f"{owner}: {failed}")
        if causes:
            self._failed(f"forwarding cannot be kept inside the overlay: {'; '.join(causes)}", HUB_FORWARDS)
        else:
            self._failed(
                "this node cannot be a hub: neither nft nor iptables is there to keep forwarding inside the overlay "
                f"({INSTALL})",
                HUB_FORWARDS,
                f"{INSTALL}, then meshray down; meshray up",
            )
        return False, []

    def _forward_by(self, owner: str, held: Sequence[HeldTable]) -> tuple[list[str], str]:
        """(what changed, why it cannot be done)."""
        ours = next((table for table in held if table.owner == owner), None)
        if ours and iptables.guard_in_place(ours.table, self.opening):
            return [], ""
        if ours:
            for chain, rule in ours.table.marked(f"{self.opening.mark} guard"):
                self._host.delete(ours, chain, rule)
        for arguments in iptables.guard_arguments(self.opening):
            answer = self._host.iptables(owner, arguments)
            if not answer.ok:
                return [], answer.cause
        return [f"{owner} FORWARD: only overlay to overlay is forwarded"], ""

    def _close_by_iptables(self, held: Sequence[HeldTable], cause: str) -> list[str]:
        """``cause``: why nft could not do it, where there is one."""
        causes = [cause] if cause else []
        log: list[str] = []
        for owner in self._host.owners(held):
            changed, failed = self._close_by(owner)
            if failed:
                causes.append(f"{owner}: {failed}")
                continue
            log += changed
            if self._proc.has_ipv6():
                changed, failed = self._close_by(owner.replace("ip", "ip6", 1))
                log += changed
                if failed:
                    self._left_open("IPv6 network", failed)
            return log
        self._left_open("network", "; ".join(causes) or f"neither nft nor iptables is there ({INSTALL})")
        return []

    def _left_open(self, networks: str, cause: str) -> None:
        if self.closed:
            when = " once the agent has ended" if self._owned is not None and self._owned.stands else ""
            self._failed(
                f"Ray's ports are open to every {networks} that this machine is in{when}: {cause}", fix=INSTALL
            )

    def _close_by(self, program: str) -> tuple[list[str], str]:
        """(what changed, why it cannot be done)."""
        ipv6 = program.startswith("ip6")
        table, cause = self._host.iptables_table(program)
        if table is None:
            return [], cause
        if iptables.closing_in_place(table, self.opening, self.closed, ipv6=ipv6):
            return [], ""
        script = iptables.closing_script(table, self.opening, self.closed, ipv6=ipv6)
        answer = self._host.iptables_restore(program, script)
        return ([f"{program} {iptables.INPUT_CHAIN}: in place"], "") if answer.ok else ([], answer.cause)

    def _open_again(self, program: str) -> list[str]:
        table, cause = self._host.iptables_table(program)
        script = iptables.removal(table) if table else ""
        if table and not script:
            return []
        if script:
            answer = self._host.iptables_restore(program, script)
            if answer.ok:
                return [f"{program}: chains of meshray removed"]
            cause = answer.cause
        self._failed(f"{program} still has chains of meshray: {cause}")
        return []


@dataclass(frozen=True)
class GuardState:
    """Whether Ray's ports are closed to all but the overlay.

    Attributes:
        how: ``nft`` or ``iptables``, whose rules close them; empty: nothing does.
        why: why nothing does, or not for IPv6, in a sentence; empty where all is closed.
    """

    how: str
    why: str


def guard_state(interface: str, *, run: Run = run_program, proc: Path = Path("/proc")) -> GuardState:
    """Reads it from the host's rules, with or without an agent. Blocks for some ten milliseconds; needs root."""
    kernel = Proc(proc)
    host = Backends(run, kernel)
    listing = host.nft_listing()
    comments = nft.own_table_comments(listing or "")
    if any(comment.startswith(f"meshray {interface}: {CLOSED} ") for comment in comments or ()):
        return GuardState("nft", "")
    for held in host.tables(listing):
        if _closes(held, interface):
            return GuardState("iptables", _ipv6_gap(host, held.owner, interface) if kernel.has_ipv6() else "")
    if host.problems:
        return GuardState("", "; ".join(host.problems))
    if listing is None and not host.variants():
        return GuardState("", f"neither nft nor iptables is there ({INSTALL})")
    return GuardState("", "no rule of meshray's closes them")


def _closes(held: HeldTable, interface: str) -> bool:
    chain = held.table.chain("INPUT")
    return any(rule.comment.startswith(iptables.closing_mark(interface)) for rule in (chain.rules if chain else ()))


def _ipv6_gap(host: Backends, owner: str, interface: str) -> str:
    program = owner.replace("ip", "ip6", 1)
    table, cause = host.iptables_table(program)
    if table is None:
        return f"not for IPv6: {cause}"
    return "" if _closes(HeldTable(program, table), interface) else f"not for IPv6: {program} has no rule of meshray's"
