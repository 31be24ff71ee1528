"""Detect a network that drops UDP above a rate, on the path to the hub, and measure the relay beside it.

    bytes of the hub's peer: 1 to 30 Mbit/s ──► lost TCP segments ──20 in one interval──► a train of packets over UDP
                                                                                             │ dropped without delay
                                                          10 times faster? ◄── echoes over the relay

Nothing is sent on an idle path, on a fast one, or on one that loses nothing. `meshray.agent.paths.hub_transport`
decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from meshray.doctor.path.trains import EchoOfSize, measure_limit
from meshray.linux.sockets import lost_segments

#: A reading of the device, and the bytes of the hub's peer in it.
Moved = tuple[object, int]
#: A path is busy from this rate on. A limit above the other one cannot be compared: the relay and the echoes of two
#: agents carry less than 10 times as much. kbit/s.
BUSY_KBIT_S, MOST_KBIT_S = 1000.0, 30_000.0
#: This many lost TCP segments between two looks are a reason to measure; the device is read every 5 s.
SOME_LOST = 20
#: The shortest time over which a rate is computed, seconds.
_LEAST_S = 2.0
#: The pause after a measurement, seconds. It doubles after each one that found no limit.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 600.0, 7200.0
#: An answer to a packet of the train, or over the relay, later than this counts as lost, seconds.
_ANSWER_S = 1.0
#: The relay's rate is measured for this long, in rounds with twice as many packets under way each, seconds.
_RELAY_S, _ROUND_S = 3.0, 0.2
#: The shortest time between two readings of the bytes of the traffic, seconds.
_LEAST_RATE_S = 0.8
_FIRST_WINDOW, _LARGEST_WINDOW = 16, 512
#: The counters of the calling thread's network namespace.
_NETSTAT = Path("/proc/thread-self/net/netstat")


@dataclass(frozen=True)
class LimitWatch:
    """Decides when the limit of UDP is worth a measurement (pure). Times are seconds of the boot clock.

    >>> watch = LimitWatch().moved(0, 0.0).moved(5_000_000, 5.0)
    >>> watch.is_busy, watch.rate_kbit_s
    (True, 8000.0)
    >>> watch.counted(100, 5.0).counted(150, 10.0).is_due
    True

    Attributes:
        at: when the bytes were read last; None: not yet on this path.
        rate_kbit_s: the rate between the last two readings.
        lost: the counter of lost segments when the path was busy last; None: it was not.
        is_due: the limit should be measured now.
        not_before: the next measurement.
        pause_s: the pause after the last one.
    """

    at: float | None = None
    moved_bytes: int = 0
    rate_kbit_s: float = 0.0
    lost: int | None = None
    is_due: bool = False
    not_before: float = 0.0
    pause_s: float = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether the path carries so much that a limit may be the reason that it carries no more."""
        return BUSY_KBIT_S <= self.rate_kbit_s <= MOST_KBIT_S

    def moved(self, moved_bytes: int, now: float) -> LimitWatch:
        """Record the bytes that the hub's peer received and sent so far."""
        if self.at is None or moved_bytes < self.moved_bytes:
            return replace(self, at=now, moved_bytes=moved_bytes, rate_kbit_s=0.0, lost=None, is_due=False)
        if now - self.at < _LEAST_S:
            return replace(self, is_due=False)
        rate = (moved_bytes - self.moved_bytes) / (now - self.at) / 125
        after = replace(self, at=now, moved_bytes=moved_bytes, rate_kbit_s=rate, is_due=False)
        return after if after.is_busy else replace(after, lost=None)

    def counted(self, lost: int, now: float) -> LimitWatch:
        """Record the counter of lost segments of a busy path."""
        is_due = self.lost is not None and lost - self.lost >= SOME_LOST and now >= self.not_before
        return replace(self, lost=lost, is_due=is_due)

    def measured(self, *, limited: bool, now: float) -> LimitWatch:
        """Record a measurement: after fruitless ones the next is later."""
        pause_s = FIRST_PAUSE_S if limited or not self.pause_s else min(LONGEST_PAUSE_S, 2 * self.pause_s)
        return replace(self, at=None, lost=None, is_due=False, not_before=now + pause_s, pause_s=pause_s)


def count_lost_segments() -> int:
    """Return the TCP segments that were lost so far; call it inside the overlay's network namespace."""
    try:
        return lost_segments(_NETSTAT.read_text())
    except OSError:
        return 0


async def find_limit(echo: EchoOfSize, size: int, used_kbit_s: float) -> float | None:
    """Return the rate to which UDP is limited, kbit/s; None: it is not, or to more than `MOST_KBIT_S`.

    Args:
        size: bytes of the whole inner packet.
        used_kbit_s: the rate that the path carried just before. The train competes with its packets, and may show less.
    """
    result = await measure_limit(echo, size, _ANSWER_S)
    rate = max(result.rate_kbit_s, used_kbit_s)
    return rate if result.is_policed and result.received and rate <= MOST_KBIT_S else None


async def measure_rate(echo: EchoOfSize, size: int, enough_kbit_s: float, moved: Callable[[], Moved]) -> float:
    """Return the rate of the path, kbit/s; within about three seconds.

    The traffic that lost packets before may fill the path, and echoes then wait behind it. Otherwise echoes
    fill it: the number of packets under way doubles each round, because a new TCP connection is slow at first.

    Args:
        size: bytes of the whole inner packet.
        enough_kbit_s: the measurement ends when this much is reached.
        moved: returns the bytes of the hub's peer, of which two values as far apart as a rate needs are compared.
    """
    found: list[float] = []
    echoes = asyncio.get_running_loop().create_task(_send_echoes(echo, size, found))
    best, until, readings = 0.0, time.monotonic() + _RELAY_S, [(time.monotonic(), *moved())]
    try:
        while best < enough_kbit_s and time.monotonic() < until:
            await asyncio.sleep(_ROUND_S)
            best = max([best, *found])
            device, bytes_now = moved()
            if device is readings[-1][1]:
                continue
            readings.append((time.monotonic(), device, bytes_now))
            best = max([best, *_rates(readings)])
    finally:
        echoes.cancel()
    return best


def _rates(readings: Sequence[tuple[float, object, int]]) -> list[float]:
    """Return the rates, kbit/s, from each earlier reading to the last one that is far enough from it."""
    at, _, bytes_now = readings[-1]
    return [(bytes_now - before) / (at - then) / 125 for then, _, before in readings if at - then >= _LEAST_RATE_S]


async def _send_echoes(echo: EchoOfSize, size: int, found: list[float]) -> None:
    """Add the rate of each round of echoes, kbit/s, until cancelled."""
    window = _FIRST_WINDOW
    while True:
        began = time.monotonic()
        answered = await asyncio.gather(*(_echo_until(echo, size, began + _ROUND_S) for _ in range(window)))
        found.append(sum(answered) * size * 8 / (time.monotonic() - began) / 1000)
        window = min(_LARGEST_WINDOW, 2 * window)
        if not any(answered):
            await asyncio.sleep(_ROUND_S)


async def _echo_until(echo: EchoOfSize, size: int, until: float) -> int:
    """Return how many echoes, one after the other, were answered until then; a lost one ends them."""
    answered = 0
    while time.monotonic() < until and await echo(_ANSWER_S, size) is not None:
        answered += 1
    return answered
