"""Keeps a host's firewall open for the overlay and closed for everything else. Blocking: call it in a thread.

    firewall = Firewall(Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=True))
    for line in firewall.apply():
        print(line)                     # nft inet filter input: lets the overlay in
    async for _ in firewall.changes():  # somebody reloaded a firewall
        await asyncio.to_thread(firewall.apply)
    firewall.remove()

An accept in a table of our own cannot overrule a drop in somebody else's, so one rule is put into each base chain
that would drop the overlay, marked by its comment. What meshray itself forbids is `guard`'s: it stands in the table
``inet meshray``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from threading import Lock

from meshray.firewall import iptables, nft, rules
from meshray.firewall.advice import SWITCH, forwarding_fix
from meshray.firewall.backends import Backends, HeldTable
from meshray.firewall.closing import Closed
from meshray.firewall.guard import GUARD, Guard
from meshray.firewall.opening import Opening, Way
from meshray.firewall.own_rules import lets_all_in
from meshray.firewall.owned_table import OwnedTable
from meshray.firewall.programs import Proc, Run, run_program
from meshray.firewall.ruleset import Chain, Rule
from meshray.firewall.silent import SilentNodes
from meshray.model.node import HUB_FORWARDS
from meshray.model.problem import Problem

#: How often rules are looked at without being told of a change.
LOOK_S = 60.0
#: The same where iptables-legacy is in use: the kernel tells nobody of its changes.
LEGACY_LOOK_S = 10.0

_DOES = {Way.IN: "lets the overlay in", Way.OUT: "lets the overlay out", Way.THROUGH: "forwards within the overlay"}


class Firewall:
    """One node's firewall.

    Attributes:
        unguarded: why Ray's ports are open to others than the overlay; empty: they are not.

    Args:
        opening: what is to pass.
        run: runs a program; tests put a fake host here.
        proc: the kernel's settings.
        owned: the table that nobody else can change; None: there is one where ``run`` is the real thing.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        run: Run = run_program,
        proc: Path = Path("/proc"),
        owned: OwnedTable | None = None,
    ) -> None:
        self._opening = opening
        self._proc = Proc(proc)
        self._host = Backends(run, self._proc)
        real = OwnedTable() if run is run_program else None
        self._guard = Guard(opening, self._host, self._proc, owned or real)
        #: Whether firewalld lets all of the interface in because meshray asked it to; None: not known yet.
        self._trusted: bool | None = None
        self._applied = False
        self.unguarded = ""
        self._silent = SilentNodes(opening.interface, run=run)
        self._problems: list[Problem] = []
        self._lock = Lock()

    def problems(self) -> list[Problem]:
        """What the last `close`, `apply` or `remove` could not do."""
        unread = [Problem("overlay_admitted", text, fix="meshray doctor") for text in self._host.problems]
        return [*self._guard.problems, *unread, *self._problems]

    @property
    def foreign(self) -> frozenset[int]:
        """Ports that Ray would use and another program has: they are neither closed nor opened."""
        return self._guard.closed.foreign

    def close(self, closed: Closed) -> list[str]:
        """Closes these TCP ports, and no others, to all but the overlay and this host; returns what changed.

        Takes one call of nft, before the interface is there as well. From then on `apply` keeps them closed. Where
        `apply` has let members in, they reach the new ports when this returns.
        """
        with self._lock:
            others = closed.members != self._guard.closed.members
            log = self._guard.close(closed)
            self._unguarded_because()
            return log + self._apply() if others and self._applied else log

    def _unguarded_because(self) -> None:
        # Others read it meanwhile, so it is set as a whole.
        self.unguarded = "; ".join(problem.text for problem in self._guard.problems if problem.code == GUARD)

    def hold(self, silent: Collection[IPv4Address]) -> str:
        """Holds this host's connections to these silent nodes and to no others; see `meshray.firewall.silent`.

        Returns why that cannot be done, or ``""``.
        """
        return self._silent.hold(silent)

    def apply(self) -> list[str]:
        """Puts in place whatever is missing; idempotent. Returns what changed, [] when all was in place."""
        with self._lock:
            self._applied = True
            return self._apply()

    def _apply(self) -> list[str]:
        self._problems, self._host.problems = [], []
        listing = self._host.nft_listing()
        held = self._host.tables(listing)
        log = self._ask_firewalld(held)
        if log:
            listing = self._host.nft_listing()
            held = self._host.tables(listing)
        guarded, guard_log = self._guard.keep(listing, held)
        self._unguarded_because()
        log += guard_log
        if guard_log and listing is None:
            held = self._host.tables(listing)
        for table in held:
            log += self._open(table, guard_by_iptables=listing is None)
        return log + self._forwarding(guarded)

    def remove(self) -> list[str]:
        """Takes back exactly what is ours; idempotent. Returns what changed."""
        with self._lock:
            return self._remove()

    def _remove(self) -> list[str]:
        self._problems, self._host.problems = [], []
        self._trusted, self._applied = None, False
        self._silent.hold(())
        log = self._restore_forwarding()
        listing = self._host.nft_listing()
        held = self._host.tables(listing)
        interface = self._opening.interface
        if any(table.is_firewalld for table in held) and self._host.distrust(interface):
            log.append(f"firewalld: {interface} is out of the trusted zone")
        for table in held:
            # The chain to which they lead goes with them.
            jumps = iptables.members_jumps(table.table) if table.owner != "nft" else []
            ours = list(table.table.marked(self._opening.mark))
            log += self._delete(table, [(chain, rule) for chain, rule in ours if rule not in jumps])
        return log + self._guard.remove(listing, held)

    async def changes(self) -> AsyncIterator[None]:
        """Yields when somebody changed the host's rules (debounced), and at least every LOOK_S seconds.

        The first time at once, when it has begun to listen: what happened before that is not missed either.
        """
        from meshray.firewall.watch import Watch

        with Watch() as watch:
            while True:
                yield
                # What failed is tried again soon: nobody tells that /proc/sys can be written again.
                often = self._proc.legacy_table_in_use() or bool(self.problems())
                await watch.wait(LEGACY_LOOK_S if often else LOOK_S)

    def _ask_firewalld(self, held: list[HeldTable]) -> list[str]:
        """The interface goes into firewalld's trusted zone; a zone that a user chose for it is left.

        That zone lets everything in, so what members are not to reach is dropped by our own table (`Opening.strict`).
        """
        firewalld = [table for table in held if table.is_firewalld]
        interface, members = self._opening.interface, self._guard.closed.members
        log = []
        if any(rules.missing(table.table, self._opening, members) for table in firewalld):
            # Where firewalld does not answer (it ended and left its rules), a rule of ours does it, as in any table.
            if not self._host.zone_of(interface) and self._host.trust(interface).ok:
                self._trusted = True
                log = [f"firewalld: {interface} is in the trusted zone"]
        elif firewalld and self._trusted is None:
            self._trusted = self._host.trusted_by_us(interface)
        strict = bool(firewalld and self._trusted)
        self._opening = self._guard.opening = replace(self._opening, strict=strict)
        return log

    def _open(self, held: HeldTable, *, guard_by_iptables: bool) -> list[str]:
        """Our accepts into every chain that drops the overlay, and what is outdated of ours out."""
        opening, members = self._opening, self._guard.closed.members
        also = [comment for _, comment in iptables.guard_comments(opening)] if guard_by_iptables else []
        gone = rules.obsolete(held.table, opening, members, also if opening.forwards else [])
        missing = rules.missing(held.table.without([rule for _, rule in gone]), opening, members)
        change = self._open_by_nft if held.owner == "nft" else self._open_by_iptables
        return change(held, gone, missing)

    def _open_by_nft(
        self, held: HeldTable, gone: list[tuple[Chain, Rule]], missing: list[tuple[Chain, Way]]
    ) -> list[str]:
        """In one transaction: what members reach must not be cut off because it becomes more."""
        opening, members = self._opening, self._guard.closed.members
        out = "".join(nft.delete_command(held.table, chain, rule) for chain, rule in gone)
        into = "".join(nft.insert_command(held.table, chain, way, opening, members) for chain, way in missing)
        if not out + into:
            return []
        answer = self._host.nft_script(out + into)
        if answer.ok:
            removed = [f"{held.label(chain)}: rule removed" for chain in dict.fromkeys(chain for chain, _ in gone)]
            return [*removed, *(f"{held.label(chain)}: {_DOES[way]}" for chain, way in missing)]
        for chain, way in missing:
            self._still_drops(held, chain, way, answer.cause)
        if not missing:
            self._not_removed(held, gone[0][0], answer.cause)
        return []

    def _open_by_iptables(
        self, held: HeldTable, gone: list[tuple[Chain, Rule]], missing: list[tuple[Chain, Way]]
    ) -> list[str]:
        """First out, then in: iptables deletes by what a rule says, and would take the new one for the old one."""
        jumps = iptables.members_jumps(held.table)
        log = self._delete(held, [(chain, rule) for chain, rule in gone if rule not in jumps])
        if not any(way is Way.IN for _, way in missing) and any(rule in jumps for _, rule in gone):
            answer = self._host.iptables_restore(held.owner, iptables.removal(held.table, [iptables.MEMBERS_CHAIN]))
            log += [f"{held.owner} {iptables.MEMBERS_CHAIN}: removed"] if answer.ok else []
        for chain, way in missing:
            if way is Way.IN and not lets_all_in(self._opening, self._guard.closed.members):
                script = iptables.members_script(held.table, self._opening, self._guard.closed.members)
                answer = self._host.iptables_restore(held.owner, script)
            else:
                answer = self._host.insert(held, chain, way, self._opening)
            if answer.ok:
                log.append(f"{held.label(chain)}: {_DOES[way]}")
            else:
                self._still_drops(held, chain, way, answer.cause)
        return log

    def _still_drops(self, held: HeldTable, chain: Chain, way: Way, cause: str) -> None:
        text = f"{held.label(chain)} still drops the overlay: {cause}{self._way_out(held)}"
        code = HUB_FORWARDS if way is Way.THROUGH else "overlay_admitted"
        self._problems.append(Problem(code, text, fix="meshray doctor"))

    def _way_out(self, held: HeldTable) -> str:
        """firewalld lets nobody else change its rules from version 2.1 on, so a user must choose the zone."""
        interface = self._opening.interface
        return f" (firewall-cmd --zone=trusted --change-interface={interface})" if held.is_firewalld else ""

    def _delete(self, held: HeldTable, found: list[tuple[Chain, Rule]]) -> list[str]:
        log = []
        for chain, rule in found:
            answer = self._host.delete(held, chain, rule)
            if answer.ok:
                log.append(f"{held.label(chain)}: rule removed")
            else:
                self._not_removed(held, chain, answer.cause)
        return log

    def _not_removed(self, held: HeldTable, chain: Chain, cause: str) -> None:
        text = f"a rule of ours is still in {held.label(chain)}: {cause}"
        self._problems.append(Problem("overlay_admitted", text, fix="meshray doctor"))

    def _forwarding(self, guarded: bool) -> list[str]:
        """The kernel forwards what comes in on an interface whose own switch is on; no other interface is touched."""
        return self._switch_forwarding("1" if self._opening.forwards and guarded else "0")

    def _restore_forwarding(self) -> list[str]:
        """A new interface begins with the value of ``default``, so that is what it had before us."""
        default = self._proc.forwarding("default")
        return self._switch_forwarding(default) if default is not None else []

    def _switch_forwarding(self, wanted: str) -> list[str]:
        interface = self._opening.interface
        current = self._proc.forwarding(interface)
        if current is None or current == wanted:
            return []
        try:
            self._proc.set_forwarding(interface, wanted)
        except OSError as error:
            text = f"{SWITCH}{interface} cannot be switched {'on' if wanted == '1' else 'off'}: {error.strerror}"
            self._problems.append(Problem(HUB_FORWARDS, text, fix=forwarding_fix(interface, wanted)))
            return []
        return [f"forwarding on {interface} is {'on' if wanted == '1' else 'off'}"]
