"""Measure the largest packet that each path carries, which determines the peers' routes.

new path ──────────────┐
TCP that does not get ─┴─► MtuSearch over probes of that size ──► a route with that mtu (none where a full one passes)
through on an old one
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from ipaddress import IPv4Address

from meshray.agent.paths.mtu import SIZES, MtuSearch, find_mtu, passes, underlay_reports
from meshray.agent.paths.prober import Prober
from meshray.agent.paths.tcp_stalls import Stalls
from meshray.defaults import DEFAULT_MTU
from meshray.linux import overlay_netns
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint

log = logging.getLogger(__name__)

#: The interval at which stalls, changed paths and due measurements are handled, seconds.
_CHECK_S = 1.0
#: The timeout of one probe, seconds: longer than any round trip that a cluster tolerates.
_PROBE_TIMEOUT_S = 1.0
#: The timeout while TCP waits for the result: the round trip times this factor, at least this minimum. After no answer
#: it doubles.
_ROUND_TRIPS, _SHORTEST_S, _LONGEST_S = 4.0, 0.3, 2.0
#: A search sends at most a dozen packets.
_AT_ONCE = 8
#: A path may become wider: it is measured again at this interval, seconds.
_REMEASURE_S = 1800.0
#: A congested link loses large packets first: the result of a quick search is confirmed after this, seconds.
_CONFIRM_S = 60.0
#: TCP may retransmit for other reasons: the earliest time at which the same path is measured again for it, seconds.
_RECHECK_S, _LONGEST_RECHECK_S = 2.0, 8.0

#: A path on which nothing passed is measured again after a pause that doubles up to this, seconds.
_LONGEST_PAUSE_S = 30.0

#: One peer and its path: its address, and the endpoint to which its packets are sent.
PeerPath = tuple[IPv4Address, Endpoint | None]


class PathMtu:
    """The MTU of every peer's route. ``changed`` is called whenever one changes."""

    def __init__(self, prober: Prober, changed: Callable[[], None]) -> None:
        self._prober = prober
        self._changed = changed
        self._found: dict[IPv4Address, int] = {}
        self._measured: dict[PeerPath, float] = {}
        self._done: set[IPv4Address] = set()
        self._silent: dict[PeerPath, int] = {}
        self._stalls = Stalls()
        self._checked: dict[PeerPath, float] = {}
        self._busy: dict[PeerPath, asyncio.Task[None]] = {}
        #: The paths as last determined, and when the first of them is due, by the monotonic clock.
        self._current: set[PeerPath] = set()
        self._are_current, self._next_due = False, 0.0
        self._tasks = Tasks()

    def mtu(self, peer: IPv4Address) -> int:
        """Return the MTU of the path to this peer, bytes of an inner packet."""
        return self._found.get(peer, DEFAULT_MTU)

    @property
    def narrow(self) -> Mapping[IPv4Address, int]:
        """Return the peers whose paths carry less than the device's MTU."""
        return {ip: mtu for ip, mtu in self._found.items() if mtu < DEFAULT_MTU}

    def is_measured(self, peer: IPv4Address) -> bool:
        """Return whether `mtu` has been measured."""
        return peer in self._done

    def network_changed(self) -> None:
        """Measure every path again."""
        self._measured, self._done, self._silent = {}, set(), {}
        self._next_due = 0.0

    def paths_changed(self) -> None:
        """Determine the paths again at the next check."""
        self._are_current = False

    async def run(self, current_paths: Callable[[], Iterable[PeerPath]]) -> None:
        """Measure every path that is new or stalls, several at a time, until cancelled.

        Args:
            current_paths: returns all paths. It is called at the beginning and after `paths_changed`.
        """
        try:
            while True:
                if not self._are_current:
                    self._are_current = True
                    self._current = set(current_paths())
                    self._forget_all_but(self._current)
                    self._next_due = 0.0
                stalled = await asyncio.to_thread(overlay_netns.run, self._stalls.find)
                if stalled or time.monotonic() >= self._next_due:
                    self._start_due(stalled)
                await asyncio.sleep(_CHECK_S)
        finally:
            await self._tasks.close()

    def _start_due(self, stalled: set[IPv4Address]) -> None:
        """Start what is due, stalled paths first."""
        waiting = sorted(self._current - self._busy.keys(), key=lambda path: path[0] not in stalled)
        for path in waiting:
            if len(self._busy) >= _AT_ONCE:
                return
            if self._is_due(path):
                self._start(path, self._measure(path))
            elif path[0] in stalled and self._may_recheck(path):
                self._start(path, self._check(path))
        self._next_due = min((self._due(path) for path in waiting), default=math.inf)

    def _forget_all_but(self, current: set[PeerPath]) -> None:
        for known in (self._measured, self._silent, self._checked):
            for path in known.keys() - current:
                del known[path]
        for path in self._busy.keys() - current:
            # Its remaining probes take another path now, and would count for this one.
            self._busy[path].cancel()
        self._done &= {ip for ip, _ in current}
        ended = set(self._found) - {ip for ip, _ in current}
        for ip in ended:
            del self._found[ip]
        if ended:
            self._changed()

    def _start(self, path: PeerPath, work: Coroutine[object, object, None]) -> None:
        async def until_done() -> None:
            try:
                await work
            finally:
                del self._busy[path]
                self._next_due = 0.0

        self._busy[path] = self._tasks.start(until_done(), f"mtu of {path[0]}")

    def _is_due(self, path: PeerPath) -> bool:
        return time.monotonic() >= self._due(path)

    def _due(self, path: PeerPath) -> float:
        return self._measured[path] + _REMEASURE_S if path in self._measured else 0.0

    def _may_recheck(self, path: PeerPath) -> bool:
        pause_s = min(_LONGEST_RECHECK_S, _RECHECK_S * 2.0 ** min(self._silent.get(path, 0), 16))
        return time.monotonic() - self._checked.get(path, -pause_s) >= pause_s

    async def _check(self, path: PeerPath) -> None:
        """Check whether the packet size blocks TCP; if so, the smallest size lets it continue at once."""
        ip, size = path[0], self.mtu(path[0])
        passed = await passes(self._probe(path, quick=True), size)
        self._checked[path] = time.monotonic()
        if passed is None:
            self._silent[path] = self._silent.get(path, 0) + 1
        elif passed or size == SIZES[-1]:
            self._silent.pop(path, None)
        else:
            log.warning("packets to %s: those of %d bytes no longer pass", ip, size)
            self._found[ip] = SIZES[-1]
            self._changed()
            await self._measure(path, MtuSearch().result(size, passed=False))
            if path not in self._silent:
                self._measured[path] = time.monotonic() - _REMEASURE_S + _CONFIRM_S

    async def _measure(self, path: PeerPath, search: MtuSearch | None = None) -> None:
        ip, endpoint = path
        self._measured[path] = time.monotonic()
        with underlay_reports(endpoint) as underlay:
            found = await find_mtu(self._probe(path, quick=search is not None), underlay, search or MtuSearch())
        if found is None:
            # Nothing passed at all, so the size is not the cause.
            times = self._silent.get(path, 0)
            self._silent[path] = times + 1
            self._measured[path] = (
                time.monotonic() - _REMEASURE_S + min(_LONGEST_PAUSE_S, _CHECK_S * 2.0 ** min(times, 16))
            )
            return
        self._silent.pop(path, None)
        self._done.add(ip)
        if found != self.mtu(ip):
            log.info("packets to %s: at most %d bytes", ip, found)
            self._found[ip] = found
            self._changed()

    def _probe(self, path: PeerPath, *, quick: bool) -> Callable[[int], Coroutine[object, object, bool]]:
        timeout_s, rtt_ms = _PROBE_TIMEOUT_S, self._prober.measured(path[0]).rtt_ms
        if quick and rtt_ms is not None:
            slow = 2.0 ** min(self._silent.get(path, 0), 4)
            timeout_s = min(_LONGEST_S, max(_SHORTEST_S, _ROUND_TRIPS * rtt_ms / 1000) * slow)

        async def probe(size: int) -> bool:
            return await self._prober.round_trip(path[0], timeout_s, size=size) is not None

        return probe
