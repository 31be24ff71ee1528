"""All processes of one Ray, so that ending it leaves none behind and touches no other Ray.

`ray start` runs in a session of its own, which its processes inherit. Jobs leave that session, so
descendants count too. A session's id cannot be reused by the kernel while one process is in it: as long
as one known member lives, whoever is in the session is ours.

>>> family = Family(leader=4711)
>>> family.look()
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

#: Without these a node is not in Ray, whatever else of it still runs.
VITAL = frozenset({"raylet", "gcs_server"})
#: A `ray start` that got SIGTERM while it was still starting may swallow it and wait for processes that are gone.
_LONELY_S = 1.0
_LONELY_POLL_S = 0.2


@dataclass(frozen=True)
class Process:
    """One process, told from a later one with the same pid by its start (clock ticks after boot)."""

    pid: int
    started: int
    parent: int
    session: int
    name: str = field(default="", compare=False)

    @classmethod
    def parse(cls, pid: int, stat: str) -> Process | None:
        """From /proc/PID/stat (proc(5)); None for zombies."""
        # The program's name stands in brackets and may hold anything, also brackets and blanks.
        start, _, rest = stat.rpartition(")")
        fields = rest.split()
        if len(fields) < 20 or fields[0] in "ZX":
            return None
        return cls(pid, int(fields[19]), int(fields[1]), int(fields[3]), start.partition("(")[2])


def members(leader: int, known: frozenset[Process], running: Mapping[int, Process]) -> frozenset[Process]:
    """Who of ``running`` belongs to the leader: known ones, its session, and all their descendants. Pure."""
    ours = {running[item.pid] for item in known if _is_same(item, running.get(item.pid))}
    if leader in running and not known:
        ours.add(running[leader])
    if any(item.session == leader for item in ours):
        ours.update(item for item in running.values() if item.session == leader)
    children: dict[int, list[Process]] = {}
    for item in running.values():
        children.setdefault(item.parent, []).append(item)
    unseen = list(ours)
    while unseen:
        for child in children.get(unseen.pop().pid, ()):
            if child not in ours:
                ours.add(child)
                unseen.append(child)
    return frozenset(ours)


def vital(family: frozenset[Process]) -> frozenset[Process]:
    """Those without which the node is not in Ray. Pure.

    A raylet's child bears its parent's name until it has become a worker, and one in between ends at once: only those
    are meant that `ray start` itself has made.
    """
    makers = {process.pid for process in family if process.name not in VITAL}
    return frozenset(process for process in family if process.name in VITAL and process.parent in makers)


class Family:
    """The processes of the Ray whose `ray start` has the pid ``leader``."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self._known: frozenset[Process] = frozenset()
        self._vital: frozenset[Process] = frozenset()

    def look(self) -> frozenset[Process]:
        """Who lives now. Look now and then: a leader that was killed leaves only those who were known."""
        self._known = members(self.leader, self._known, _running())
        self._vital |= vital(self._known)
        return self._known

    def raylets(self) -> list[int]:
        """The pids of the raylets that live now; costs a look."""
        return [process.pid for process in vital(self.look()) if process.name == "raylet"]

    def is_broken(self) -> bool:
        """Whether one of the vital processes that were seen has ended. Costs a file each, not a look."""
        return any(not _is_same(process, _process(process.pid)) for process in self._vital)

    def lacks_raylet(self) -> bool:
        """Whether no raylet was ever seen: there is none yet, or it ended before the first look."""
        return all(process.name != "raylet" for process in self._vital)

    def age_s(self) -> float | None:
        """How long the leader runs, seconds; None where it does not."""
        leader = _process(self.leader)
        if leader is None:
            return None
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - leader.started / os.sysconf("SC_CLK_TCK"))

    def kill(self) -> None:
        """SIGKILL to everyone who still lives."""
        for process in self.look():
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(process.pid)
                try:
                    # Looked at again while the descriptor holds on to it: it cannot be another one now.
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
    """Each process' parent."""
    return {process.pid: process.parent for process in _running().values()}


def _process(pid: int) -> Process | None:
    stat = procfs.read(pid, "stat")
    return Process.parse(pid, stat.decode(errors="replace")) if stat else None


async def end_lonely_leader(family: Family) -> None:
    """Kills a `ray start` that stays although nothing is left of its Ray; returns when it has ended."""
    lonely_s = 0.0
    while alive := family.look():
        lonely_s = lonely_s + _LONELY_POLL_S if len(alive) == 1 else 0.0
        if lonely_s > _LONELY_S:
            family.kill()
        await asyncio.sleep(_LONELY_POLL_S)
