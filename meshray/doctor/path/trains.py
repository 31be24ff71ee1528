"""Measure how fast a path is by short trains of packets of full size, and whether packets of that size pass.

    3 packets at once ──► all answered: the pauses between the answers are the time that one packet takes
                     └──► none after a second: some of the smallest size, to distinguish the size from the time;
                          answered: full size again, because a buffer may have been full

A slow line spaces the packets of a train, so the shortest pause gives its rate. A busy machine answers several at once,
which only makes the path appear faster. A policer drops what exceeds its rate without delay, where a full buffer first
delays: that is what a longer train shows, which only the path to a hub gets.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from meshray.defaults import LEAST_MTU
from meshray.doctor.path.facts import LEAST_KBIT_S, LIMITED_LOSS, SLOW_KBIT_S

#: Makes a round trip with an inner packet of this size, bytes; returns milliseconds, None: no answer in this many
#: seconds.
EchoOfSize = Callable[[float, int], Awaitable[float | None]]

#: The packets of the first train: one may be lost. Where it was rather slow, a second one decides.
_FULL, _SECOND, _SMALL = 3, 4, 2
#: An answer later than this counts as lost, seconds: seven packets of full size take 1.3 s at 64 kbit/s, and other
#: nodes are examined over the same line at the same time.
_ANSWER_S = 3.0
#: Without an answer until then, the smallest size is tried as well, seconds.
_SMALL_AFTER_S = 1.0
#: The smallest size, and then full size again, have this long each, seconds: four in all.
_LATER_S = 1.5
#: The longer train, at 23 Mbit/s: 180 KB, more than the buckets of usual policers hold. Its packets are sent in groups,
#: so that they fit into the buffer of the receiving socket.
_GROUPS, _GROUP, _GROUP_EVERY_S = 16, 8, 0.004
#: The number of such trains that must lose packets.
_TRAINS = 2
#: From this share of lost packets on, the bucket of a policer may have become empty near the end of the train. A train
#: in groups of this size, twice as fast, shows the limit then: during the wait for answers the bucket fills again.
_HINT_LOSS, _LARGE_GROUP = 0.05, 16
#: A policer delays nothing: the middle 80 % of the answers differ by less than this, milliseconds. A buffer that delays
#: less than that is too small to be of use.
_NO_DELAY_MS = 15.0


@dataclass(frozen=True)
class SizeResult:
    """What the short train showed.

    Attributes:
        full_passes: whether packets of full size were answered; ``small_passes``: those of the smallest size.
        rate_kbit_s: the rate of the path, kbit/s of inner packets; None: faster than can be measured, or not known.
    """

    full_passes: bool
    small_passes: bool
    rate_kbit_s: float | None = None

    @property
    def is_fast(self) -> bool:
        """Whether a longer train does not hold up the line."""
        return self.full_passes and (self.rate_kbit_s is None or self.rate_kbit_s >= SLOW_KBIT_S)


@dataclass(frozen=True)
class LimitResult:
    """What the longer train showed.

    Attributes:
        sent: packets of full size, with the number of answers.
        rate_kbit_s: the rate of those that were answered, kbit/s.
        is_policed: packets were dropped without having been delayed.
    """

    sent: int = 0
    received: int = 0
    rate_kbit_s: float = 0.0
    is_policed: bool = False

    @property
    def loss(self) -> float:
        """The share of the packets that were not answered."""
        return 1 - self.received / self.sent if self.sent else 0.0


async def measure_size(echo: EchoOfSize, size: int) -> SizeResult:
    """Return whether packets of this size pass, and the rate if they are slow; within four seconds.

    Args:
        size: bytes of the whole inner packet.
    """
    answered = asyncio.Event()
    answers: Sequence[float | None] = ()

    async def full() -> None:
        nonlocal answers
        answers = await _train(echo, size, _FULL)
        answered.set()

    async def small() -> tuple[bool, bool]:
        """Return whether the smallest size passes, and whether full size does at the second attempt."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(answered.wait(), _SMALL_AFTER_S)
        if _passes(answers) or not _passes(await _train(echo, LEAST_MTU, _SMALL, _LATER_S)):
            return False, False
        # The longer trains of other nodes may have filled a buffer at the moment of the first one.
        return True, _passes(await _train(echo, size, _FULL, _LATER_S))

    _, (small_passes, passes_again) = await asyncio.gather(full(), small())
    passes = _passes(answers) or passes_again
    rate = rate_of(answers, size)
    # A slower line is certain already, and another train would hold it up.
    if rate is not None and LEAST_KBIT_S <= rate < SLOW_KBIT_S:
        second = rate_of(await _train(echo, size, _SECOND), size)
        rate = max(rate, second) if second is not None else rate
    return SizeResult(passes, passes or small_passes, rate)


async def measure_limit(echo: EchoOfSize, size: int, answer_s: float) -> LimitResult:
    """Return whether a longer train loses packets to a policer.

    Args:
        size: bytes of the whole inner packet.
        answer_s: an answer later than this counts as lost.
    """
    result, group = LimitResult(), _GROUP
    for _ in range(_TRAINS):
        result = limit_of(await _long_train(echo, size, group, answer_s), size, result)
        if group == _GROUP and _HINT_LOSS <= result.loss < LIMITED_LOSS:
            group = _LARGE_GROUP
            result = limit_of(await _long_train(echo, size, group, answer_s), size, result)
        if result.loss < LIMITED_LOSS:
            return LimitResult(result.sent, result.received, result.rate_kbit_s)
    return result


def rate_of(answers: Sequence[float | None], size: int) -> float | None:
    """Return the rate, kbit/s, at which packets that were sent at once were answered; None if one is missing (pure).

    >>> rate_of([200.0, 385.0, 570.0], 1420)
    61.4
    """
    times_ms = sorted(answer for answer in answers if answer is not None)
    if len(times_ms) < len(answers) or len(times_ms) < 2:
        return None
    shortest_ms = min(later - earlier for earlier, later in pairwise(times_ms))
    return round(size * 8 / shortest_ms, 1) if shortest_ms > 0 else None


def limit_of(answers: Sequence[float | None], size: int, before: LimitResult = LimitResult()) -> LimitResult:
    """Return what the answers of a longer train mean (pure).

    Args:
        before: the result of an earlier train, of which one without delays is enough.
    """
    times_ms = sorted(answer for answer in answers if answer is not None)
    tenth = len(times_ms) // 10
    undelayed = bool(times_ms) and times_ms[-1 - tenth] - times_ms[tenth] < _NO_DELAY_MS
    rate = len(times_ms) * size * 8 / (_GROUPS * _GROUP_EVERY_S * 1000)
    lost = 1 - len(times_ms) / len(answers)
    return LimitResult(
        len(answers), len(times_ms), round(rate, 1), before.is_policed or (undelayed and lost >= LIMITED_LOSS)
    )


async def _train(echo: EchoOfSize, size: int, count: int, answer_s: float = _ANSWER_S) -> Sequence[float | None]:
    return await asyncio.gather(*(echo(answer_s, size) for _ in range(count)))


async def _long_train(echo: EchoOfSize, size: int, group: int, answer_s: float) -> Sequence[float | None]:
    return await asyncio.gather(
        *(_late(echo, index * _GROUP_EVERY_S, answer_s, size) for index in range(_GROUPS) for _ in range(group))
    )


def _passes(answers: Sequence[float | None]) -> bool:
    return any(answer is not None for answer in answers)


async def _late(echo: EchoOfSize, wait_s: float, answer_s: float, size: int) -> float | None:
    await asyncio.sleep(wait_s)
    return await echo(answer_s, size)
