"""Agents connect at the rate at which they are served, and the others learn when to come again."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

from meshray.coordinator.arrivals import LEAST_PER_S, MAX_RETRY_S, SLOW_S, Arrivals


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def enter(arrivals: Arrivals, stack: contextlib.ExitStack, count: int) -> list[Callable[[], None]]:
    entered = []
    for _ in range(count):
        assert arrivals.retry_after_s() is None
        entered.append(stack.enter_context(arrivals.entering()))
    return entered


def test_a_place_is_free_once_a_map_was_sent_or_the_connection_ended() -> None:
    arrivals = Arrivals(3, Clock())
    with contextlib.ExitStack() as stack:
        first, _, _ = enter(arrivals, stack, 3)
        assert arrivals.retry_after_s() == 1
        first()
        first()
        enter(arrivals, stack, 1)
        assert arrivals.retry_after_s() is not None
    assert arrivals.retry_after_s() is None


def test_agents_that_read_slowly_do_not_keep_others_away() -> None:
    clock = Clock()
    arrivals = Arrivals(3, clock)
    with contextlib.ExitStack() as stack:
        (late, *_) = enter(arrivals, stack, 3)
        clock.now += SLOW_S + 0.1
        assert arrivals.retry_after_s() is None
        late()


def test_refused_agents_are_asked_to_come_one_after_the_other() -> None:
    arrivals = Arrivals(1, Clock())
    with arrivals.entering():
        given = Counter(arrivals.retry_after_s() for _ in range(3 * int(MAX_RETRY_S * LEAST_PER_S)))
    assert None not in given and max(key for key in given if key) <= MAX_RETRY_S
    # Three times as many as there is time for.
    assert max(count for key, count in given.items() if key and key > 1) <= 4 * LEAST_PER_S


def test_the_times_follow_the_rate_at_which_maps_are_sent() -> None:
    clock = Clock()
    arrivals = Arrivals(1, clock)
    for _ in range(800):
        with arrivals.entering() as served:
            served()
        clock.now += 0.0025
    with arrivals.entering():
        # 400 per second were served: 1,200 agents have time in 3 s.
        assert max(seconds or 0 for seconds in (arrivals.retry_after_s() for _ in range(1200))) in (3, 4)
    clock.now += 60
    with arrivals.entering():
        assert arrivals.retry_after_s() == 1
