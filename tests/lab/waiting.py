"""Waiting is for a condition, with a deadline, and says on failure what was waited for.

>>> wait_until(lambda: 42, 1, "the answer")
42
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: The first and, where nothing else is said, the longest pause between two looks, seconds.
FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.25


class DeadlineError(AssertionError):
    """What was waited for did not come."""


def wait_until(
    condition: Callable[[], T],
    deadline_s: float,
    what: str,
    *,
    evidence: Callable[[], str] = lambda: "",
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> T:
    """The first truthy answer of the condition.

    Args:
        condition: looked at again and again; an exception from it ends the wait at once.
        deadline_s: how long, in seconds.
        what: ends the sentence "waited in vain for …".
        evidence: what to show when it did not come (logs).
        longest_pause_s: between two looks; longer ones for a look that costs much.

    Raises:
        DeadlineError: the condition was not met in time.
    """
    end = time.monotonic() + deadline_s
    pause = FIRST_PAUSE_S
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= end:
            raise DeadlineError(f"waited {deadline_s:g} s in vain for {what} (last seen: {answer!r})\n{evidence()}")
        time.sleep(pause)
        pause = min(pause * 1.5, longest_pause_s)
