"""When to try UDP again while the tunnel uses the relay (pure).

A few large data packets, also sent over UDP, show whether data passes again. The hub's WireGuard answers to the last
source, so each trial is short: if answers do not return over UDP, only a few are lost.

    |‾|________|‾|________________|‾|________________________________ …     (10 s, 20 s, 40 s, 60 s, 60 s …)

>>> trial = Trial()
>>> trial.is_due(now=100.0)
True
>>> trial.begin(now=100.0)
>>> trial.allows(3, now=100.0), trial.is_due(now=100.1)
(3, False)
"""

from __future__ import annotations

#: The pause between the first two trials; each further pause is twice as long, up to the maximum.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 60.0
#: The limits of one trial: datagrams and seconds.
TRIAL_DATAGRAMS, TRIAL_S = 32, 0.2


class Trial:
    """Decides which datagrams are also sent over UDP. Times are those of a monotonic clock, seconds."""

    def __init__(self) -> None:
        self._next_at = float("-inf")
        self._ends_at = float("-inf")
        self._left = 0
        self._pause_s = FIRST_PAUSE_S

    def is_due(self, now: float) -> bool:
        """Return whether the next trial may begin."""
        return now >= self._next_at

    def begin(self, now: float) -> None:
        """Begin a trial. The pause before the next one is longer."""
        self._ends_at, self._left = now + TRIAL_S, TRIAL_DATAGRAMS
        self._next_at = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def is_running(self, now: float) -> bool:
        """Return whether a trial is in progress."""
        return now <= self._ends_at and self._left > 0

    def allows(self, waiting: int, now: float) -> int:
        """Return how many of ``waiting`` datagrams belong to the trial."""
        if not self.is_running(now):
            return 0
        allowed = min(waiting, self._left)
        self._left -= allowed
        return allowed

    def reset(self) -> None:
        """Allow a trial at once and reset the pauses, because the network has changed."""
        self._next_at = float("-inf")
        self._pause_s = FIRST_PAUSE_S
