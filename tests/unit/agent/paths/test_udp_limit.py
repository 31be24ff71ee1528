"""The limit of UDP on the path to the hub: when it is measured, and the relay's rate beside it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.paths.udp_limit import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MOST_KBIT_S,
    SOME_LOST,
    LimitWatch,
    find_limit,
    measure_rate,
)


def watched(kbit_s: float, lost_each: int, looks: int = 10) -> list[LimitWatch]:
    """Return the watch after each look at a path with this rate, every 5 s, that loses so many segments between two."""
    watch, seen = LimitWatch(), []
    for look in range(looks):
        watch = watch.moved(int(look * 5 * kbit_s * 125), look * 5.0)
        if watch.is_busy:
            watch = watch.counted(look * lost_each, look * 5.0)
        seen.append(watch)
    return seen


def test_a_busy_path_that_loses_packets_is_measured() -> None:
    assert [watch.is_due for watch in watched(8000, SOME_LOST, looks=4)] == [False, False, True, True]


@given(st.floats(0, 1_000_000), st.integers(0, SOME_LOST - 1))
def test_a_path_that_loses_little_is_never_measured(kbit_s: float, lost_each: int) -> None:
    assert not any(watch.is_due for watch in watched(kbit_s, lost_each))


@given(st.one_of(st.floats(0, 990), st.floats(MOST_KBIT_S * 1.01, 1_000_000)), st.integers(0, 100_000))
def test_an_idle_or_fast_path_is_never_measured(kbit_s: float, lost_each: int) -> None:
    assert not any(watch.is_due for watch in watched(kbit_s, lost_each))


def test_losses_while_the_path_was_idle_do_not_count() -> None:
    busy = watched(8000, 0, looks=3)[-1]
    idle = busy.moved(busy.moved_bytes + 1000, 15.0)
    assert not idle.is_busy
    again = idle.moved(idle.moved_bytes + 5_000_000, 20.0).counted(10_000, 20.0)
    assert not again.is_due


def test_a_new_device_starts_its_counters_again() -> None:
    busy = watched(8000, 0, looks=3)[-1]
    assert not busy.moved(100, 15.0).is_busy


def test_fruitless_measurements_become_rare() -> None:
    watch, now = watched(8000, SOME_LOST)[-1], 50.0
    pauses = []
    for _ in range(6):
        watch = watch.measured(limited=False, now=now)
        pauses.append(watch.not_before - now)
        now = watch.not_before
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert watch.measured(limited=True, now=now).pause_s == FIRST_PAUSE_S
    waiting = LimitWatch(lost=0, not_before=100.0)
    assert not waiting.counted(SOME_LOST, 99.0).is_due
    assert waiting.counted(SOME_LOST, 100.0).is_due


@dataclass
class Line:
    """A simulated line.

    Attributes:
        kbit_s: its rate.
        bucket_bytes: of a policer, which drops what exceeds the rate; 0: the line delays instead.
        rtt_s: the round trip without a queue.
        buffer_s: the time that its buffer holds.
    """

    kbit_s: float
    bucket_bytes: int = 0
    rtt_s: float = 0.005
    buffer_s: float = 1.0
    sent: int = 0
    free_at: float = 0.0
    level: float = 0.0
    refilled_at: float = field(default=float("-inf"))

    async def echo(self, timeout_s: float, size: int) -> float | None:
        self.sent += 1
        now = asyncio.get_running_loop().time()
        wait_s = 0.0
        if self.bucket_bytes:
            grown = self.level + min(1e6, now - self.refilled_at) * self.kbit_s * 125
            self.level, self.refilled_at = min(grown, self.bucket_bytes), now
            passes = self.level >= size
            self.level -= size if passes else 0
        else:
            wait_s = max(now, self.free_at) - now + size / (self.kbit_s * 125)
            passes = wait_s <= self.buffer_s
            self.free_at = now + wait_s if passes else self.free_at
        await asyncio.sleep(min(timeout_s, self.rtt_s + wait_s) if passes else timeout_s)
        return (self.rtt_s + wait_s) * 1000 if passes else None


async def test_a_policer_is_found_with_its_rate() -> None:
    limit = await find_limit(Line(8000, bucket_bytes=10_000).echo, 1200, 7500.0)
    assert limit is not None
    assert 7500.0 <= limit <= 12_000.0


async def test_a_slow_line_a_fast_one_and_a_high_limit_are_not_limits_of_udp() -> None:
    assert await find_limit(Line(10_000, buffer_s=0.2).echo, 1200, 9000.0) is None
    assert await find_limit(Line(1_000_000).echo, 1200, 9000.0) is None
    assert await find_limit(Line(8000, bucket_bytes=10_000).echo, 1200, 60_000.0) is None


def idle() -> tuple[object, int]:
    return object(), 0


async def test_a_dead_path_is_not_limited() -> None:
    async def nothing(timeout_s: float, size: int) -> float | None:
        await asyncio.sleep(timeout_s / 100)
        return None

    assert await find_limit(nothing, 1200, 8000.0) is None
    assert await measure_rate(nothing, 1200, 80_000.0, idle) == 0.0


async def test_the_relays_rate_is_measured_until_it_is_enough() -> None:
    line = Line(20_000)
    rate = await measure_rate(line.echo, 1200, 10_000.0, idle)
    assert 10_000.0 <= rate <= 21_000.0
    slow = await measure_rate(Line(5000).echo, 1200, 80_000.0, idle)
    assert 3000.0 <= slow <= 5100.0


async def test_traffic_that_fills_the_relay_shows_its_rate() -> None:
    async def late(timeout_s: float, size: int) -> float | None:
        await asyncio.sleep(timeout_s)
        return None

    began = asyncio.get_running_loop().time()

    def moved() -> tuple[object, int]:
        return object(), int((asyncio.get_running_loop().time() - began) * 12_500_000)

    assert 80_000.0 <= await measure_rate(late, 1200, 80_000.0, moved) <= 120_000.0
    assert asyncio.get_running_loop().time() - began < 2.0
