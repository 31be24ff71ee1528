"""How long to wait before the next try: doubling, capped, with jitter so that nodes do not come all at once."""

from __future__ import annotations

import random


def backoff_s(attempt: int, *, first_s: float = 0.5, cap_s: float = 30.0, jitter: random.Random | None = None) -> float:
    """Seconds before try number ``attempt`` (0 is the first repetition), between half and the whole of
    the doubled delay ("equal jitter")."""
    whole = min(cap_s, first_s * 2.0 ** min(attempt, 32))
    return whole / 2 + (jitter or random).uniform(0, whole / 2)
