"""The delay before a retry: doubling, capped, with jitter so that nodes do not retry all at once."""

from __future__ import annotations

import random


def backoff_s(attempt: int, *, first_s: float = 0.5, cap_s: float = 30.0, jitter: random.Random | None = None) -> float:
    """Return the seconds before retry number ``attempt`` (0 is the first), between half and all of the doubled delay.

    This is "equal jitter".
    """
    delay_s = min(cap_s, first_s * 2.0 ** min(attempt, 32))
    return delay_s / 2 + (jitter or random).uniform(0, delay_s / 2)
