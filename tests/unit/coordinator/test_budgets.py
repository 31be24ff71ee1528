"""The budgets of one member, by a clock that the test advances."""

from __future__ import annotations

import pytest

from meshray.coordinator.budgets import Bucket, Budgets, Rate, pass_account
from meshray.coordinator.reports import Reports


class World:
    def __init__(self, size: int = 20) -> None:
        self.now = 1000.0
        self.budgets = Budgets(lambda: self.now, lambda: size)


def test_a_burst_costs_no_time_and_then_the_rate_counts() -> None:
    bucket, rate = Bucket(0.0), Rate(2, 10)
    assert [bucket.spend(1, rate, 0.0) for _ in range(10)] == [0.0] * 10
    assert bucket.spend(1, rate, 0.0) == 0.5
    assert bucket.debt_s(rate, 0.25) == 0.25
    assert bucket.debt_s(rate, 5.0) == 0.0
    assert not bucket.take(10, rate, 5.0)
    assert bucket.take(9, rate, 5.0)


def test_a_debt_has_a_bound_and_a_clock_that_goes_back_forgives_nothing() -> None:
    bucket, rate = Bucket(100.0), Rate(1, 10)
    for _ in range(1000):
        bucket.spend(1, rate, 100.0)
    assert bucket.debt_s(rate, 100.0) == 10.0
    assert bucket.debt_s(rate, 50.0) == 10.0
    assert bucket.debt_s(rate, 61.0) == 0.0


def test_one_member_pays_for_itself_alone() -> None:
    world = World()
    for _ in range(1000):
        world.budgets.charge_changes("a", 1)
    assert world.budgets.changes_wait_s("a") > 10
    assert world.budgets.changes_wait_s("b") == 0
    assert world.budgets.changes_wait_s("a", is_hub=True) == 0


@pytest.mark.parametrize("size", [1, 20, 1000])
def test_an_honest_agent_never_waits(size: int) -> None:
    world, budgets = World(size), None
    budgets = world.budgets
    # A hub reports all nodes at once, all paths fall back at once, and each tries the direct path again.
    for hello in range(30):
        assert budgets.message_wait_s("hub", 2000) == 0
        budgets.charge_changes("hub", 1, is_hub=True)
        budgets.charge_changes("worker", 1)
        assert budgets.changes_wait_s("worker") == 0, hello
    for _ in range(3):
        for _ in range(size):
            assert budgets.may_notify("worker")
            assert budgets.message_wait_s("worker", 60) == 0
        budgets.charge_changes("hub", size, is_hub=True)
        assert budgets.changes_wait_s("hub", is_hub=True) == 0
    for _ in range(3600):
        world.now += 5
        budgets.charge_changes("worker", 2)
        assert budgets.changes_wait_s("worker") == 0
        assert budgets.connection_wait_s("worker") == 0
    assert budgets.may_rotate("worker")


def test_keys_and_enrolments_are_refused_beyond_their_budget() -> None:
    world = World()
    assert sum(world.budgets.may_rotate("a") for _ in range(100)) == 10
    assert world.budgets.may_rotate("b")
    assert sum(world.budgets.may_enrol("t") for _ in range(5000)) == 2000
    world.now += 60
    assert world.budgets.may_rotate("a") and not world.budgets.may_rotate("a")


def test_budgets_of_removed_nodes_tokens_and_passes_are_dropped() -> None:
    world = World()
    while world.budgets.may_rotate("gone"):
        pass
    assert world.budgets.may_enrol("t")
    while world.budgets.may_record_refusal(pass_account("p")):
        pass
    world.budgets.retain(["gone"], ["t"], ["p"])
    assert not world.budgets.may_rotate("gone")
    assert not world.budgets.may_record_refusal(pass_account("p"))
    world.budgets.retain([], [], [])
    assert not world.budgets._buckets


async def test_of_reports_of_one_kind_the_newest_counts() -> None:
    reports, applied = Reports(), []

    def saying(text: str) -> object:
        async def apply() -> None:
            applied.append(text)

        return apply

    for number in range(100):
        reports.put("hello", saying(f"hello {number}"))  # type: ignore[arg-type]
        reports.put("ray", saying(f"ray {number}"))  # type: ignore[arg-type]
    for _ in range(2):
        await (await reports.next())()
    assert applied == ["hello 99", "ray 99"]
