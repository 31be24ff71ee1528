"""Find all processes of one Ray, so that stopping it leaves none behind and affects no other Ray.

`ray start` runs in its own session, which its processes inherit. Jobs leave that session, so descendants count too. The
kernel does not reuse a session's id while a process is in it: while one known member lives, all processes of the
session belong to this Ray.

>>> family = Family(leader=4711)
>>> family.scan()
>>> family.kill()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.linux import procfs

#: The processes without which a node is not part of the cluster.
VITAL = frozenset({"raylet", "gcs_server"})
#: A `ray start` that got SIGTERM during its start may ignore it and wait for processes that have ended, seconds.
_CHILDLESS_S = 1.0
_CHILDLESS_POLL_S = 0.2


@dataclass(frozen=True)
class Process:
    """One process. Its start (clock ticks after boot) distinguishes it from a later one with the same pid."""

    pid: int
    started: int
    parent: int
    session: int
    name: str = field(default="", compare=False)

    @classmethod
    def parse(cls, pid: int, stat: str) -> Process | None:
        """Parse /proc/PID/stat (proc(5)); return None for zombies."""
        # The program's name is in brackets and may contain brackets and blanks.
        start, _, rest = stat.rpartition(")")
        fields = rest.split()
        if len(fields) < 20 or fields[0] in "ZX":
            return None
        return cls(pid, int(fields[19]), int(fields[1]), int(fields[3]), start.partition("(")[2])


def members(leader: int, known: frozenset[Process], running: Mapping[int, Process]) -> frozenset[Process]:
    """Return the processes of the leader: known ones, its session, and all their descendants (pure)."""
    found = {running[item.pid] for item in known if _is_same(item, running.get(item.pid))}
    if leader in running and not known:
        found.add(running[leader])
    if any(item.session == leader for item in found):
        found.update(item for item in running.values() if item.session == leader)
    children: dict[int, list[Process]] = {}
    for item in running.values():
        children.setdefault(item.parent, []).append(item)
    pending = list(found)
    while pending:
        for child in children.get(pending.pop().pid, ()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return frozenset(found)


def vital(family: frozenset[Process]) -> frozenset[Process]:
    """Return the processes without which the node is not part of the cluster (pure).

    A child of a raylet has its parent's name until it becomes a worker, and an intermediate one ends at once. So only
    children of `ray start` itself count.
    """
    starters = {process.pid for process in family if process.name not in VITAL}
    return frozenset(process for process in family if process.name in VITAL and process.parent in starters)


class Family:
    """The processes of the Ray whose `ray start` has the pid ``leader``."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self._known: frozenset[Process] = frozenset()
        self._vital: frozenset[Process] = frozenset()

    def scan(self) -> frozenset[Process]:
        """Return the running processes. Call this now and then: after a leader was killed, only known processes are
        found."""
        self._known = members(self.leader, self._known, _running())
        self._vital |= vital(self._known)
        return self._known

    def raylets(self) -> list[int]:
        """Return the pids of the running raylets; scans all processes."""
        return [process.pid for process in vital(self.scan()) if process.name == "raylet"]

    def is_broken(self) -> bool:
        """Return whether a known vital process has ended. Reads one file per process."""
        return any(not _is_same(process, _process(process.pid)) for process in self._vital)

    def has_no_raylet(self) -> bool:
        """Return whether no raylet was seen yet, or it ended before the first scan."""
        return all(process.name != "raylet" for process in self._vital)

    def age_s(self) -> float | None:
        """Return the age of the leader, seconds; None if it does not run."""
        leader = _process(self.leader)
        if leader is None:
            return None
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - leader.started / os.sysconf("SC_CLK_TCK"))

    def kill(self) -> None:
        """Send SIGKILL to all running processes."""
        for process in self.scan():
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(process.pid)
                try:
                    # Checked again while the descriptor refers to it, so it cannot be another process.
                    if _is_same(process, _process(process.pid)):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)


def _is_same(known: Process, now: Process | None) -> bool:
    return now is not None and now.started == known.started


def _running() -> dict[int, Process]:
    found = (_process(pid) for pid in procfs.pids())
    return {process.pid: process for process in found if process is not None}


def parents() -> dict[int, int]:
    """Return the parent of each process."""
    return {process.pid: process.parent for process in _running().values()}


def _process(pid: int) -> Process | None:
    stat = procfs.read(pid, "stat")
    return Process.parse(pid, stat.decode(errors="replace")) if stat else None


async def end_childless_leader(family: Family) -> None:
    """Kill a `ray start` that remains after all its processes have ended, and return when it has ended."""
    alone_s = 0.0
    while alive := family.scan():
        alone_s = alone_s + _CHILDLESS_POLL_S if len(alive) == 1 else 0.0
        if alone_s > _CHILDLESS_S:
            family.kill()
        await asyncio.sleep(_CHILDLESS_POLL_S)
