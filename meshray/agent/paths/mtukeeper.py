"""Finds out how large a packet each path carries, and keeps the peers' routes at that.

new path ──► MtuSearch over probes of that size ──► ip route … mtu N   (none where a full one passes)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from meshray.agent.paths.mtu import asking_underlay, find_mtu
from meshray.agent.paths.prober import Prober
from meshray.errors import MeshrayError
from meshray.model.address import Endpoint
from meshray.runtime import inside
from meshray.settings import DEFAULT_MTU
from meshray.wireguard.routes import keep_peer_mtus

log = logging.getLogger(__name__)

#: How often it is looked for paths that are new.
_LOOK_S = 1.0
#: Longer than any round trip that a cluster can bear.
_PROBE_TIMEOUT_S = 1.0
#: A search sends a dozen packets at most.
_AT_ONCE = 8
#: A path may become narrower without a word: it is measured again so often.
_AGAIN_S = 1800.0

#: A path on which nothing passed at all is measured again after a pause that doubles up to this.
_LONGEST_PAUSE_S = 30.0

#: One peer and the way to it: its address, and the endpoint that its packets are sent to.
Way = tuple[IPv4Address, Endpoint | None]


class MtuKeeper:
    """The MTU of every peer's route."""

    def __init__(self, interface: str, prober: Prober) -> None:
        self._interface = interface
        self._prober = prober
        self._found: dict[IPv4Address, int] = {}
        self._measured: dict[Way, float] = {}
        self._done: set[IPv4Address] = set()
        self._silent: dict[Way, int] = {}

    def mtu(self, peer: IPv4Address) -> int:
        """Of the path to this peer, bytes of an inner packet."""
        return self._found.get(peer, DEFAULT_MTU)

    def is_measured(self, peer: IPv4Address) -> bool:
        """Whether `mtu` was found out by now."""
        return peer in self._done

    def network_changed(self) -> None:
        """Every path is measured again."""
        self._measured, self._done, self._silent = {}, set(), {}

    async def run(self, ways: Callable[[], Iterable[Way]]) -> None:
        """Measures every path that is new, some at a time, until cancelled."""
        while True:
            there = set(ways())
            self._measured = {way: when for way, when in self._measured.items() if way in there}
            self._silent = {way: times for way, times in self._silent.items() if way in there}
            gone = set(self._found) - {ip for ip, _ in there}
            self._done &= {ip for ip, _ in there}
            for ip in gone:
                del self._found[ip]
            if gone:
                await self._apply()
            due = [way for way in there if time.monotonic() - self._measured.get(way, -_AGAIN_S) >= _AGAIN_S]
            await asyncio.gather(*(self._measure(way) for way in due[:_AT_ONCE]))
            await asyncio.sleep(_LOOK_S)

    async def _measure(self, way: Way) -> None:
        ip, endpoint = way
        self._measured[way] = time.monotonic()

        async def passes(size: int) -> bool:
            return await self._prober.round_trip(ip, _PROBE_TIMEOUT_S, size=size) is not None

        with asking_underlay(endpoint) as underlay:
            found = await find_mtu(passes, underlay)
        if found is None:
            # Nothing passed at all: that says nothing of the size.
            times = self._silent.get(way, 0)
            self._silent[way] = times + 1
            self._measured[way] = time.monotonic() - _AGAIN_S + min(_LONGEST_PAUSE_S, _LOOK_S * 2.0 ** min(times, 16))
            return
        self._silent.pop(way, None)
        self._done.add(ip)
        if found != self.mtu(ip):
            log.info("packets to %s: at most %d bytes", ip, found)
            self._found[ip] = found
            await self._apply()

    async def _apply(self) -> None:
        narrow = {ip: mtu for ip, mtu in self._found.items() if mtu < DEFAULT_MTU}
        try:
            await asyncio.to_thread(inside.run, keep_peer_mtus, self._interface, narrow)
        except MeshrayError as error:
            log.warning("%s", error)
