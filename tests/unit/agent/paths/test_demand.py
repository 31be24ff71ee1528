"""Which pairs are contacted, and when they are looked at."""

from __future__ import annotations

import math
import random

from meshray.agent.paths.demand import FOLLOW_S, IDLE_S, Demand
from meshray.agent.paths.due_times import DueTimes
from meshray.agent.paths.traffic import LISTEN_AGAIN_S


def test_a_pair_is_wanted_for_some_minutes_after_its_last_packet() -> None:
    demand = Demand()
    assert demand.wanted_until("a") == -math.inf
    demand.note("a", 10.0)
    demand.note("a", 20.0)
    assert demand.wanted_until("a") == 20.0 + IDLE_S
    demand.keep({"b"})
    assert demand.wanted_until("a") == -math.inf


def test_the_side_that_saw_the_last_packet_later_follows_the_other() -> None:
    # Both see all packets, and report the peer again only after this time: their last reports differ by at most that.
    demand = Demand()
    demand.note("a", 0.0)
    assert not demand.may_follow("a", FOLLOW_S - 1)
    assert demand.may_follow("a", IDLE_S - LISTEN_AGAIN_S)
    assert FOLLOW_S <= IDLE_S - 2 * LISTEN_AGAIN_S
    demand.note("a", IDLE_S)
    demand.forget("a")
    assert demand.wanted_until("a") == -math.inf


def test_due_times_are_those_of_a_table_that_is_searched() -> None:
    times, table = DueTimes(), dict[str, float]()
    chance = random.Random(16)
    for _ in range(5000):
        key, at = str(chance.randrange(30)), round(chance.uniform(0, 100), 1)
        if chance.random() < 0.1:
            due = times.pop(at)
            assert sorted(due) == sorted(key for key, when in table.items() if when <= at)
            assert [table[key] for key in due] == sorted(table[key] for key in due)
            for key in due:
                del table[key]
        elif chance.random() < 0.1:
            times.set(key, math.inf)
            table.pop(key, None)
        else:
            times.set(key, at)
            table[key] = at
        assert times.first == min(table.values(), default=math.inf)
    assert len(times._heap) <= 64 + 4 * len(table)
