"""Samples the throughput of every path once, when it is new: one peer at a time, with pauses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from meshray.agent.paths.path_mtu import Way
from meshray.agent.paths.throughput import ThroughputMeter
from meshray.agent.paths.trains import Samples

#: A new path first carries what it was made for: a mesh that is coming up has other things to do. Seconds.
_PAUSE_S = 20.0


class Sampler:
    """The sampled throughput of every peer."""

    def __init__(self, meter: ThroughputMeter) -> None:
        self._meter = meter
        self._samples = Samples()
        self._mbit_s: dict[IPv4Address, float] = {}

    def mbit_s(self, peer: IPv4Address) -> float | None:
        """Of the path to this peer; None where it was not sampled, or the sample told nothing."""
        return self._mbit_s.get(peer)

    async def run(self, address: IPv4Address, ways: Callable[[], Iterable[Way]]) -> None:
        """Samples what is due, until cancelled. Without the port there are no samples, and nothing else is lost."""
        try:
            await self._meter.open(address)
        except OSError:
            return
        try:
            while True:
                await asyncio.sleep(_PAUSE_S)
                now = time.monotonic()
                due = next((way for way in ways() if self._samples.is_due(str(way[0]), way[1], now)), None)
                if due is not None:
                    await self._sample(*due)
        finally:
            self._meter.close()

    async def _sample(self, peer: IPv4Address, endpoint: object) -> None:
        found = await self._meter.sample(peer)
        self._samples = self._samples.took(str(peer), endpoint, time.monotonic())
        if found is not None:
            self._mbit_s[peer] = round(found, 1)
