"""The times at which something is due, by key: a heap that replaces a look at every key (pure).

>>> times = DueTimes()
>>> times.set("a", 5.0); times.set("b", 3.0); times.set("a", 4.0)
>>> times.first, times.pop(4.5), times.first
(3.0, ['b', 'a'], inf)
"""

from __future__ import annotations

import heapq
import math


class DueTimes:
    """At most one time per key. Times are of a monotonic clock, seconds."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        #: Also has times that were replaced; `_at` decides.
        self._heap: list[tuple[float, str]] = []

    def set(self, key: str, at: float) -> None:
        """Set the key's time; infinity removes it."""
        if at == math.inf:
            self._at.pop(key, None)
        elif self._at.get(key) != at:
            self._at[key] = at
            heapq.heappush(self._heap, (at, key))
            if len(self._heap) > 64 + 4 * len(self._at):
                self._heap = [(at, key) for key, at in self._at.items()]
                heapq.heapify(self._heap)

    @property
    def first(self) -> float:
        """The earliest time; infinity if there is none."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def pop(self, now: float) -> list[str]:
        """Return the keys that are due, earliest first, and remove their times."""
        due = []
        while self.first <= now:
            _, key = heapq.heappop(self._heap)
            del self._at[key]
            due.append(key)
        return due
