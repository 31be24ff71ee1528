"""Delays between retries."""

import random

from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.backoff import backoff_s


@given(st.integers(0, 10_000), st.integers())
def test_waits_are_bounded_and_never_nothing(attempt: int, seed: int) -> None:
    assert 0.25 <= backoff_s(attempt, jitter=random.Random(seed)) <= 30.0


def test_a_thousand_nodes_do_not_come_at_once() -> None:
    waits = sorted(backoff_s(5) for _ in range(1000))
    assert waits[-1] - waits[0] > 5.0
