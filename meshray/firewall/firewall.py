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

from collections.abc import AsyncIterator
from pathlib import Path
from threading import Lock

from meshray.firewall import iptables, rules
from meshray.firewall.backends import Backends, HeldTable
from meshray.firewall.closing import Closed
from meshray.firewall.guard import Guard
from meshray.firewall.opening import Opening, Way
from meshray.firewall.programs import Proc, Run, run_program
from meshray.firewall.ruleset import Chain, Rule

#: How often rules are looked at without being told of a change.
LOOK_S = 60.0
#: The same where iptables-legacy is in use: the kernel tells nobody of its changes.
LEGACY_LOOK_S = 10.0

_DOES = {Way.IN: "lets the overlay in", Way.OUT: "lets the overlay out", Way.THROUGH: "forwards within the overlay"}


class Firewall:
    """One node's firewall.

    Args:
        opening: what is to pass.
        run: runs a program; tests put a fake host here.
        proc: the kernel's settings.
    """

    def __init__(self, opening: Opening, *, run: Run = run_program, proc: Path = Path("/proc")) -> None:
        self._opening = opening
        self._proc = Proc(proc)
        self._host = Backends(run, self._proc)
        self._guard = Guard(opening, self._host, self._proc)
        self._problems: list[str] = []
        self._lock = Lock()

    def problems(self) -> list[str]:
        """What the last `close`, `apply` or `remove` could not do, in sentences."""
        return [*self._guard.problems, *self._problems]

    def close(self, closed: Closed) -> list[str]:
        """Closes these TCP ports, and no others, to all but the overlay and this host; returns what changed.

        Takes one call of nft, before the interface is there as well. From then on `apply` keeps them closed.
        """
        with self._lock:
            return self._guard.close(closed)

    def apply(self) -> list[str]:
        """Puts in place whatever is missing; idempotent. Returns what changed, [] when all was in place."""
        with self._lock:
            return self._apply()

    def _apply(self) -> list[str]:
        self._problems = self._host.problems = []
        listing = self._host.nft_listing()
        held = self._host.tables(listing)
        log = self._ask_firewalld(held)
        if log:
            listing = self._host.nft_listing()
            held = self._host.tables(listing)
        guarded, guard_log = self._guard.keep(listing, held)
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
        self._problems = self._host.problems = []
        log = self._restore_forwarding()
        listing = self._host.nft_listing()
        held = self._host.tables(listing)
        interface = self._opening.interface
        if any(table.is_firewalld for table in held) and self._host.distrust(interface):
            log.append(f"firewalld: {interface} is out of the trusted zone")
        for table in held:
            log += self._delete(table, list(table.table.marked(self._opening.mark)))
        return log + self._guard.remove(listing, held)

    async def changes(self) -> AsyncIterator[None]:
        """Yields when somebody changed the host's rules (debounced), and at least every LOOK_S seconds.

        The first time at once, when it has begun to listen: what happened before that is not missed either.
        """
        from meshray.firewall.watch import Watch

        with Watch() as watch:
            while True:
                yield
                legacy = self._proc.legacy_table_in_use()
                await watch.wait(LEGACY_LOOK_S if legacy else LOOK_S)

    def _ask_firewalld(self, held: list[HeldTable]) -> list[str]:
        """The interface goes into firewalld's trusted zone; a zone that a person chose for it is left."""
        closed = any(table.is_firewalld and rules.missing(table.table, self._opening) for table in held)
        interface = self._opening.interface
        if not closed or self._host.zone_of(interface):
            return []
        # Where firewalld does not answer (it ended and left its rules), a rule of ours does it, as in any table.
        return [f"firewalld: {interface} is in the trusted zone"] if self._host.trust(interface).ok else []

    def _open(self, held: HeldTable, *, guard_by_iptables: bool) -> list[str]:
        """Our accept into every chain that drops the overlay, and what is outdated of ours out."""
        opening = self._opening
        also = [comment for _, comment in iptables.guard_comments(opening)] if guard_by_iptables else []
        # First out, then in: iptables deletes by what a rule says, and would take the new one for the old one.
        log = self._delete(held, rules.obsolete(held.table, opening, also if opening.forwards else []))
        for chain, way in rules.missing(held.table, opening):
            answer = self._host.insert(held, chain, way, opening)
            if answer.ok:
                log.append(f"{held.label(chain)}: {_DOES[way]}")
            else:
                self._problems.append(
                    f"{held.label(chain)} still drops the overlay: {answer.cause}{self._way_out(held)}"
                )
        return log

    def _way_out(self, held: HeldTable) -> str:
        """firewalld lets nobody else change its rules from version 2.1 on, so a person must choose the zone."""
        interface = self._opening.interface
        return f" (firewall-cmd --zone=trusted --change-interface={interface})" if held.is_firewalld else ""

    def _delete(self, held: HeldTable, found: list[tuple[Chain, Rule]]) -> list[str]:
        log = []
        for chain, rule in found:
            answer = self._host.delete(held, chain, rule)
            if answer.ok:
                log.append(f"{held.label(chain)}: rule removed")
            else:
                self._problems.append(f"a rule of ours is still in {held.label(chain)}: {answer.cause}")
        return log

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
            self._problems.append(
                f"forwarding on {interface} cannot be switched {'on' if wanted == '1' else 'off'}: {error.strerror}"
            )
            return []
        return [f"forwarding on {interface} is {'on' if wanted == '1' else 'off'}"]
