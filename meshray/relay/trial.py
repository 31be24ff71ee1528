"""When to try UDP again while the tunnel goes through the relay (pure).

A few large data packets, sent by UDP as well, show whether data passes again. The hub's WireGuard answers to where
it last heard from, so each trial is short: should answers not come back by UDP, few are lost with it.

    |‾|________|‾|________________|‾|________________________________ …     (10 s, 20 s, 40 s, 60 s, 60 s …)

>>> trial = Trial()
>>> trial.is_due(now=100.0)
True
>>> trial.begin(now=100.0)
>>> trial.allows(3, now=100.0), trial.is_due(now=100.1)
(3, False)
"""

from __future__ import annotations

#: The second trial comes so long after the first; every further one after twice as long as the one before.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 60.0
#: One trial: so many datagrams, within so long.
TRIAL_DATAGRAMS, TRIAL_S = 32, 0.2


class Trial:
    """How many of the datagrams of now are to be sent by UDP too. Time is any clock that only goes forward, seconds."""

    def __init__(self) -> None:
        self._next_at = float("-inf")
        self._ends_at = float("-inf")
        self._left = 0
        self._pause_s = FIRST_PAUSE_S

    def is_due(self, now: float) -> bool:
        """Whether the next trial may begin."""
        return now >= self._next_at

    def begin(self, now: float) -> None:
        """A trial begins; the next one waits longer."""
        self._ends_at, self._left = now + TRIAL_S, TRIAL_DATAGRAMS
        self._next_at = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def allows(self, waiting: int, now: float) -> int:
        """Of ``waiting`` datagrams, how many belong to the trial."""
        if now > self._ends_at:
            return 0
        allowed = min(waiting, self._left)
        self._left -= allowed
        return allowed

    def again(self) -> None:
        """The network is another one: the next trial may begin at once, and the pauses are short again."""
        self._next_at = float("-inf")
        self._pause_s = FIRST_PAUSE_S
