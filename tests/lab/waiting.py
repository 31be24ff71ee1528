"""Wait for a condition, with a deadline; on failure the error names the condition.

>>> wait_until(lambda: 42, 1, "the answer")
42
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: The first and, unless another is given, the longest pause between two checks, seconds.
FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.25


class DeadlineError(AssertionError):
    """The awaited condition was not met."""


def wait_until(
    condition: Callable[[], T],
    deadline_s: float,
    what: str,
    *,
    evidence: Callable[[], str] = lambda: "",
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> T:
    """Return the first truthy answer of the condition.

    Args:
        condition: called repeatedly; an exception from it ends the wait at once.
        deadline_s: the timeout, seconds.
        what: the end of the sentence "waited in vain for …".
        evidence: returns what to show on failure (logs).
        longest_pause_s: the longest pause between two checks; use longer ones for expensive checks.

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
