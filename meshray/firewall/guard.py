"""What meshray itself forbids on a host: its own nftables table, or rules of iptables where there is no nft.

Forwarded is only what goes from overlay to overlay. And nobody but the overlay and the host itself reaches Ray's ports
or the overlay's addresses. All of that are drops, so it does not matter what other tables accept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshray.firewall import iptables, nft
from meshray.firewall.backends import Backends, HeldTable
from meshray.firewall.closing import Closed, described
from meshray.firewall.opening import Opening
from meshray.firewall.programs import Proc, Run, run_program

INSTALL = "apt-get install nftables"


class Guard:
    """One node's.

    Attributes:
        closed: the ports that are to be closed.
        problems: what the last call could not do, in sentences.
    """

    def __init__(self, opening: Opening, host: Backends, proc: Proc) -> None:
        self._opening = opening
        self._host = host
        self._proc = proc
        self.closed = Closed()
        self.problems: list[str] = []

    def close(self, closed: Closed) -> list[str]:
        """Closes these ports and no others, without looking first; returns what changed."""
        self.closed, self.problems = closed, []
        answer = self._host.nft_script(nft.own_table_script(self._opening, closed))
        if answer.ok:
            ports = described((*closed.always, *closed.heard))
            return [f"nft: table inet {nft.OWN_TABLE} in place, TCP {ports} closed to all but the overlay"]
        return self._close_by_iptables(self._host.tables(None), "" if answer.missing else f"nft: {answer.cause}")

    def keep(self, listing: str | None, held: Sequence[HeldTable]) -> tuple[bool, list[str]]:
        """Puts in place what is missing: (whether forwarding is safe, what changed)."""
        self.problems = []
        if listing is None:
            safe, log = self._forward_by_iptables(held)
            return safe, log + self._close_by_iptables(held, "")
        if nft.own_table_in_place(listing, self._opening, self.closed):
            return True, []
        answer = self._host.nft_script(nft.own_table_script(self._opening, self.closed))
        if answer.ok:
            return True, [f"nft: table inet {nft.OWN_TABLE} in place"]
        self.problems.append(f"nft refused the table inet {nft.OWN_TABLE}: {answer.cause}")
        return False, []

    def remove(self, listing: str | None, held: Sequence[HeldTable]) -> list[str]:
        """Takes all of it away but what carries `Opening.mark`, which is removed as every rule of ours is."""
        self.problems = []
        log = []
        for ours in held:
            if iptables.closing_removal(ours.table):
                log += [line for program in self._programs(ours.owner) for line in self._open_again(program)]
        if nft.own_table_comments(listing or "") is not None:
            answer = self._host.nft_script(f"delete table inet {nft.OWN_TABLE}\n")
            if answer.ok:
                log.append(f"nft: table inet {nft.OWN_TABLE} removed")
            else:
                self.problems.append(f"nft refused to remove the table inet {nft.OWN_TABLE}: {answer.cause}")
        return log

    def _owner(self, held: Sequence[HeldTable]) -> str | None:
        variants = self._host.variants()
        return held[0].owner if held else variants.get("nft") or variants.get("legacy")

    def _programs(self, owner: str) -> list[str]:
        return [owner, *([owner.replace("ip", "ip6", 1)] if self._proc.has_ipv6() else [])]

    def _forward_by_iptables(self, held: Sequence[HeldTable]) -> tuple[bool, list[str]]:
        """A node that is no hub needs no rule: its interface simply does not forward."""
        if not self._opening.forwards:
            return True, []
        owner = self._owner(held)
        if owner is None:
            self.problems.append(
                "this node cannot be a hub: neither nft nor iptables is there to keep forwarding inside the overlay "
                f"({INSTALL})"
            )
            return False, []
        ours = next((table for table in held if table.owner == owner), None)
        if ours and iptables.guard_in_place(ours.table, self._opening):
            return True, []
        if ours:
            for chain, rule in ours.table.marked(f"{self._opening.mark} guard"):
                self._host.delete(ours, chain, rule)
        for arguments in iptables.guard_arguments(self._opening):
            answer = self._host.iptables(owner, arguments)
            if not answer.ok:
                self.problems.append(f"forwarding cannot be kept inside the overlay: {answer.cause}")
                return False, []
        return True, [f"{owner} FORWARD: only overlay to overlay is forwarded"]

    def _close_by_iptables(self, held: Sequence[HeldTable], otherwise: str) -> list[str]:
        """``otherwise``: why nft could not do it, where there is one."""
        owner = self._owner(held)
        if owner is None:
            if self.closed:
                cause = otherwise or f"neither nft nor iptables is there ({INSTALL})"
                self.problems.append(f"Ray's ports are open to every network that this machine is in: {cause}")
            return []
        return [line for program in self._programs(owner) for line in self._close_by(program)]

    def _close_by(self, program: str) -> list[str]:
        ipv6 = program.startswith("ip6")
        table, cause = self._host.iptables_table(program)
        if table is not None:
            if iptables.closing_in_place(table, self._opening, self.closed, ipv6=ipv6):
                return []
            script = iptables.closing_script(table, self._opening, self.closed, ipv6=ipv6)
            answer = self._host.iptables_restore(program, script)
            if answer.ok:
                return [f"{program} {iptables.INPUT_CHAIN}: in place"]
            cause = answer.cause
        if self.closed:
            version = "IPv6" if ipv6 else "IPv4"
            self.problems.append(f"Ray's ports are open to every {version} network that this machine is in: {cause}")
        return []

    def _open_again(self, program: str) -> list[str]:
        table, cause = self._host.iptables_table(program)
        script = iptables.closing_removal(table) if table else ""
        if table and not script:
            return []
        if script:
            answer = self._host.iptables_restore(program, script)
            if answer.ok:
                return [f"{program} {iptables.INPUT_CHAIN}: removed"]
            cause = answer.cause
        self.problems.append(f"{program} still has the chain {iptables.INPUT_CHAIN}: {cause}")
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
    if any(comment.startswith(f"meshray {interface}: {nft.CLOSED} ") for comment in comments or ()):
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
