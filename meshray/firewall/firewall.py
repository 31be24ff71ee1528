"""Keep a host's firewall open for the overlay and closed for everything else. Blocking: call it in a thread.

    firewall = Firewall(Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=True))
    for line in firewall.apply():
        print(line)                     # nft inet filter input: lets the overlay in
    async for _ in firewall.changes():  # a firewall was reloaded
        await asyncio.to_thread(firewall.apply)
    firewall.remove()

An accept in a table of our own cannot overrule a drop in another table, so one rule is put into each base chain that
would drop the overlay, marked by its comment. The rules by which meshray itself drops packets belong to `guard`: they
are in the table ``inet meshray``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from threading import Lock

from meshray.firewall import rules
from meshray.firewall.backends.base import Change, HostTable
from meshray.firewall.backends.iptables import guard_comments
from meshray.firewall.closing import Closed
from meshray.firewall.connection_holds import ConnectionHolds
from meshray.firewall.guard import GUARD, Guard
from meshray.firewall.host_firewalls import HostFirewalls
from meshray.firewall.host_programs import Run, run_program
from meshray.firewall.kernel_state import KernelState
from meshray.firewall.opening import Opening
from meshray.firewall.owned_table import OwnedTable
from meshray.model.forwarding_switch import SWITCH, forwarding_fix
from meshray.model.node import HUB_FORWARDS
from meshray.model.problem import Problem

#: The interval at which rules are checked without a notification.
CHECK_INTERVAL_S = 60.0
#: With iptables-legacy the interval is shorter, because the kernel does not report its changes.
LEGACY_CHECK_INTERVAL_S = 10.0


class Firewall:
    """One node's firewall.

    Attributes:
        unguarded: the reason why Ray's ports are reachable from outside the overlay; empty: they are not.

    Args:
        opening: the traffic to accept.
        run: runs a program; tests pass a fake host.
        proc: the kernel's settings.
        owned: the table that no other process can change; None: create one if ``run`` is the real `run_program`.
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
        self._proc = KernelState(proc)
        self._host = HostFirewalls(run, self._proc)
        real = OwnedTable() if run is run_program else None
        self._guard = Guard(opening, self._host, self._proc, owned or real)
        self._applied = False
        self.unguarded = ""
        self._connection_holds = ConnectionHolds(opening.interface, run=run)
        self._problems: list[Problem] = []
        self._lock = Lock()

    def problems(self) -> list[Problem]:
        """Return what the last `close`, `apply` or `remove` could not do."""
        unread = [Problem("overlay_admitted", text, fix="meshray doctor") for text in self._host.problems]
        return [*self._guard.problems, *unread, *self._problems]

    @property
    def foreign(self) -> frozenset[int]:
        """Ports of Ray's that another program uses: they are neither closed nor opened."""
        return self._guard.closed.foreign

    def close(self, closed: Closed) -> list[str]:
        """Close exactly these TCP ports to all but the overlay and this host; return what changed.

        It takes one call of nft and also works before the interface exists. From then on `apply` keeps the ports
        closed. Where `apply` has admitted members, they reach the new ports when this returns.
        """
        with self._lock:
            others = closed.members != self._guard.closed.members
            log = self._guard.close(closed)
            self._update_unguarded()
            return log + self._apply() if others and self._applied else log

    def _update_unguarded(self) -> None:
        # Other threads read it meanwhile, so it is assigned as a whole.
        self.unguarded = "; ".join(problem.text for problem in self._guard.problems if problem.code == GUARD)

    def hold(self, silent: Collection[IPv4Address]) -> str:
        """Hold this host's connections to these silent nodes and to no others; see `meshray.firewall.connection_holds`.

        Return the reason why that is impossible, or ``""``.
        """
        return self._connection_holds.hold(silent)

    @property
    def applied(self) -> bool:
        """Whether the rules should be in place: `apply` was called, and `remove` was not."""
        return self._applied

    def apply(self) -> list[str]:
        """Add the missing rules; idempotent. Return what changed, [] if nothing was missing."""
        with self._lock:
            self._applied = True
            return self._apply()

    def _apply(self) -> list[str]:
        self._problems, self._host.problems = [], []
        listing = self._host.listing()
        host_tables = self._host.tables(listing)
        log = self._open_in_managers(host_tables)
        if log:
            listing = self._host.listing()
            host_tables = self._host.tables(listing)
        guarded, guard_log = self._guard.keep(listing, host_tables)
        self._update_unguarded()
        log += guard_log
        if guard_log and listing is None:
            host_tables = self._host.tables(listing)
        for table in host_tables:
            log += self._open(table)
        return log + self._forwarding(guarded)

    def remove(self) -> list[str]:
        """Remove exactly the rules that meshray added; idempotent. Return what changed."""
        with self._lock:
            return self._remove()

    def _remove(self) -> list[str]:
        self._problems, self._host.problems = [], []
        self._applied = False
        self._connection_holds.hold(())
        log = self._restore_forwarding()
        listing = self._host.listing()
        host_tables = self._host.tables(listing)
        for manager in self._host.managers:
            if any(table.manager is manager for table in host_tables):
                log += manager.close(self._opening.interface)
        for table in host_tables:
            outcome = table.backend.remove(table, list(table.table.marked(self._opening.mark)))
            log += outcome.log
            self._problems += outcome.problems
        return log + self._guard.remove(listing, host_tables)

    async def changes(self) -> AsyncIterator[None]:
        """Yield when the host's rules were changed (debounced), and at least every CHECK_INTERVAL_S seconds.

        It yields first as soon as it listens, so that earlier changes are not missed.
        """
        from meshray.firewall.watch import Watch

        with Watch() as watch:
            while True:
                yield
                # A failure is retried soon, because nothing reports that /proc/sys can be written again.
                often = self._proc.legacy_table_in_use() or bool(self.problems())
                await watch.wait(LEGACY_CHECK_INTERVAL_S if often else CHECK_INTERVAL_S)

    def _open_in_managers(self, host_tables: list[HostTable]) -> list[str]:
        """Drop in our own table what a manager accepts beyond the ports that members may reach (`Opening.strict`)."""
        interface, members = self._opening.interface, self._guard.closed.members
        log, strict = [], False
        for manager in self._host.managers:
            managed = [table for table in host_tables if table.manager is manager]
            if managed:
                dropped = any(rules.missing(table.table, self._opening, members) for table in managed)
                log += manager.open(interface, dropped=dropped)
                strict = strict or manager.accepts_all
        self._opening = self._guard.opening = replace(self._opening, strict=strict)
        return log

    def _open(self, host_table: HostTable) -> list[str]:
        """Add our accepts to every chain that drops the overlay, and remove our outdated rules; return what changed."""
        opening, members = self._opening, self._guard.closed.members
        guarded = self._guard.by_iptables and opening.forwards
        kept = [comment for _, comment in guard_comments(opening)] if guarded else []
        gone = rules.obsolete(host_table.table, opening, members, kept)
        missing = rules.missing(host_table.table.without([rule for _, rule in gone]), opening, members)
        outcome = host_table.backend.open(host_table, Change(gone, missing, opening, members))
        self._problems += outcome.problems
        return outcome.log

    def _forwarding(self, guarded: bool) -> list[str]:
        """Set the interface's own switch: the kernel forwards what it receives there. No other interface is changed."""
        return self._switch_forwarding("1" if self._opening.forwards and guarded else "0")

    def _restore_forwarding(self) -> list[str]:
        """Restore the switch as it was: a new interface starts with the value of ``default``."""
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
