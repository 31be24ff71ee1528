"""Admit agents' connections at the rate at which they get their first map, and ask the others to come again.

After a restart of the coordinator all agents come at once. The first message to each is a whole map. While too many
wait for theirs, further agents are refused before anything is prepared for them. Each refused agent gets a time to come
back. These times follow one another at the rate of the last seconds, so that the agents do not come at once again.

    connects ──► admitted ──► first map written: served ──► …
         └─ too many wait ──► HTTP 503 with Retry-After

>>> if arrivals.retry_after_s() is None:
...     with arrivals.entering() as served:
...         served()
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator

#: The number of agents that may wait for their first map. 500 agents that come at once do not reach it.
MAX_WAITING = 256
#: An agent that reads its map slowly does not count for longer, seconds.
SLOW_S = 5.0
#: The shortest and the longest time after which an agent is asked to come again, seconds.
MIN_RETRY_S, MAX_RETRY_S = 1.0, 30.0
#: The rate is that of the last so many seconds, but at least this one, 1/s.
RATE_OVER_S, LEAST_PER_S = 2.0, 50.0
_REMEMBERED = 1024


class Arrivals:
    """The agents that wait for their first map.

    Args:
        clock: seconds.
    """

    def __init__(self, max_waiting: int = MAX_WAITING, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_waiting = max_waiting
        self._clock = clock
        # When each connection began to wait, oldest first.
        self._waiting: dict[object, float] = {}
        self._served: deque[float] = deque(maxlen=_REMEMBERED)
        self._last_slot = 0.0

    def retry_after_s(self) -> int | None:
        """Return None if an agent may connect now, else the seconds until it should come again."""
        now = self._clock()
        while self._waiting and next(iter(self._waiting.values())) < now - SLOW_S:
            del self._waiting[next(iter(self._waiting))]
        if len(self._waiting) < self._max_waiting:
            return None
        self._last_slot = max(self._last_slot, now) + 1 / self._rate(now)
        if self._last_slot > now + MAX_RETRY_S:
            # More agents than this time has room for: the later ones share it.
            self._last_slot = now + MIN_RETRY_S
        return math.ceil(max(MIN_RETRY_S, self._last_slot - now))

    @contextlib.contextmanager
    def entering(self) -> Iterator[Callable[[], None]]:
        """Count a connection until the yielded function is called, or the block ends."""
        key = object()
        self._waiting[key] = self._clock()

        def served() -> None:
            if self._waiting.pop(key, None) is not None:
                self._served.append(self._clock())

        try:
            yield served
        finally:
            self._waiting.pop(key, None)

    def _rate(self, now: float) -> float:
        while self._served and self._served[0] < now - RATE_OVER_S:
            self._served.popleft()
        return max(LEAST_PER_S, len(self._served) / RATE_OVER_S)
