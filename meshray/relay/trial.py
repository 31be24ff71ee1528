"""When to try UDP again while the tunnel goes through the relay (pure).

A few datagrams, sent by UDP as well, show whether it passes again. The hub's WireGuard answers to where
it last heard from, so each trial is short: should answers not come back by UDP, few are lost with it.

    |‾|________|‾|________________|‾|________________________________ …     (10 s, 20 s, 40 s, 60 s, 60 s …)

>>> trial = Trial()
>>> trial.allows(3, now=100.0)
3
"""

from __future__ import annotations

#: The second trial comes so long after the first; every further one after twice as long as the one before.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 60.0
#: One trial: so many datagrams, within so long.
TRIAL_DATAGRAMS, TRIAL_S = 32, 0.05


class Trial:
    """How many of the datagrams of now are to be sent by UDP too. Time is any clock that only goes forward, seconds."""

    def __init__(self) -> None:
        self._next_at = float("-inf")
        self._ends_at = float("-inf")
        self._left = 0
        self._pause_s = FIRST_PAUSE_S

    def allows(self, waiting: int, now: float) -> int:
        """Of ``waiting`` datagrams, how many belong to a trial."""
        if now >= self._next_at:
            self._ends_at, self._left = now + TRIAL_S, TRIAL_DATAGRAMS
            self._next_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if now > self._ends_at:
            return 0
        allowed = min(waiting, self._left)
        self._left -= allowed
        return allowed

    def again(self) -> None:
        """The network is another one: the next datagrams try at once, and the pauses are short again."""
        self._next_at = float("-inf")
        self._pause_s = FIRST_PAUSE_S
