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
#: The pause after a slow check is as many times as long as the check, up to a second. `meshray status` takes 0.3 s of
#: a core: without this, waiting would take most of the core that the awaited processes need.
PAUSE_PER_CHECK, LONGEST_AFTER_SLOW_S = 2.0, 1.0


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
        longest_pause_s: the longest pause between two quick checks; after slow ones see `PAUSE_PER_CHECK`.

    Raises:
        DeadlineError: the condition was not met in time.
    """
    end = time.monotonic() + deadline_s
    pause = FIRST_PAUSE_S
    while True:
        began = time.monotonic()
        answer = condition()
        if answer:
            return answer
        now = time.monotonic()
        if now >= end:
            raise DeadlineError(f"waited {deadline_s:g} s in vain for {what} (last seen: {answer!r})\n{evidence()}")
        # The last check is made at the deadline, not before it.
        time.sleep(min(max(pause, min(PAUSE_PER_CHECK * (now - began), LONGEST_AFTER_SLOW_S)), end - now))
        pause = min(pause * 1.5, longest_pause_s)
