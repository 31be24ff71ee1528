"""Current measurements of a peer's path from its last probes (pure).

    >>> history = History()
    >>> history.add(753.0, now=0.0)
    >>> history.add(1.2, now=1.0)
    >>> history.measured(now=2.0).rtt_ms
    1.2

A number is shown only while it is valid. Loss counts within the last seconds only, the losses of an outage end with the
outage, and probes lost before a path first answered belong to its startup. One lost probe among a few is a lost packet
and not a rate: one of three does not mean that a third of all packets is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

#: Probes of this many last seconds count.
WINDOW_S = 10.0
#: An idle path is probed every 30 s: the latest answer represents it for this long, seconds.
LATEST_S = 60.0
#: A path that never answered may still be starting for this long (a tunnel, an agent), seconds.
COMING_UP_S = 10.0
#: This many lost probes in a row are an outage; one alone is a lost packet.
OUTAGE = 2
#: The number of probes in quick succession on a path that is new, or back, or lost a packet.
CLOSE = 4
#: With at least this many probes, one lost probe gives a rate.
RATE_FROM = 10
CLOSE_S = 1.0
#: With at least this many answers, the shortest one represents empty buffers.
_QUEUE_FROM = 3
#: The pauses between probes of a silent peer grow with its silence up to the pause of an idle path.
INTERVAL_S = 30.0
_PAUSE_SHARE = 0.5
_KEPT = 32


@dataclass(frozen=True)
class Measured:
    """The probes that count now: round trips in milliseconds, None for a lost one."""

    samples: Sequence[float | None] = ()

    @property
    def rtt_ms(self) -> float | None:
        """Median of the answered probes; of an even number the lower one, since a first probe is slow."""
        answered = sorted(sample for sample in self.samples if sample is not None)
        return round(answered[(len(answered) - 1) // 2], 3) if answered else None

    @property
    def queue_ms(self) -> float | None:
        """By how much the median exceeds the shortest round trip: the time in buffers on the way; None: too few."""
        answered = sorted(sample for sample in self.samples if sample is not None)
        if len(answered) < _QUEUE_FROM:
            return None
        return round(answered[(len(answered) - 1) // 2] - answered[0], 3)

    @property
    def loss(self) -> float | None:
        """Share of the unanswered probes."""
        return round(sum(sample is None for sample in self.samples) / len(self.samples), 3) if self.samples else None

    @property
    def silent(self) -> bool:
        """Whether the last probes, more than one, were all lost."""
        return len(self.samples) >= OUTAGE and all(sample is None for sample in list(self.samples)[-OUTAGE:])


class History:
    """The probes of one peer over one path. Times are of a monotonic clock, seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float | None]] = deque(maxlen=_KEPT)
        self._since: float | None = None
        self._answered: float | None = None

    def add(self, rtt_ms: float | None, now: float) -> None:
        """Add one probe; None: it was not answered in time."""
        if self._since is None:
            self._since = now
        if rtt_ms is not None:
            if self._answered is None or self._lost() >= OUTAGE:
                # The path is up now: earlier losses do not count.
                self._samples.clear()
            self._answered = now
        self._samples.append((now, rtt_ms))

    def measured(self, now: float) -> Measured:
        """Return the probes that count now."""
        lost = self._lost()
        if self._since is None or (self._answered is None and now - self._since < COMING_UP_S):
            return Measured()
        counted = list(self._samples)
        if lost < OUTAGE and lost:
            # One lost packet is not significant; the next probe, a second later, decides.
            counted, lost = counted[:-lost], 0
        first_of_run = len(counted) - lost
        fresh = [rtt_ms for index, (at, rtt_ms) in enumerate(counted) if index >= first_of_run or now - at <= WINDOW_S]
        if not fresh and counted and now - counted[-1][0] <= LATEST_S:
            fresh = [counted[-1][1]]
        if len(fresh) < RATE_FROM and fresh.count(None) == 1:
            fresh.remove(None)
        return Measured(tuple(fresh))

    @property
    def is_lost(self) -> bool:
        """Whether the path is silent, or never answered."""
        return self._answered is None or self._lost() >= OUTAGE

    def pause_s(self, now: float) -> float:
        """Return how long after the last probe the next one is due."""
        if self._since is None:
            return 0.0
        if self.is_lost:
            silent_since = self._since if self._answered is None else self._answered
            return min(INTERVAL_S, max(CLOSE_S, _PAUSE_SHARE * (now - silent_since)))
        unsettled = len(self._samples) < CLOSE or any(rtt_ms is None for _, rtt_ms in list(self._samples)[-CLOSE:])
        return CLOSE_S if unsettled else INTERVAL_S

    def _lost(self) -> int:
        """Return the number of lost probes since the last answer."""
        return sum(1 for _ in takewhile(lambda sample: sample[1] is None, reversed(self._samples)))
