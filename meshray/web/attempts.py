"""A limit for wrong passes, per source address (pure).

A pass has 256 random bits and cannot be guessed. The limit keeps guessing from costing the coordinator work.

>>> attempts = Attempts(clock=time.monotonic)
>>> attempts.require("192.0.2.1")          # raises MeshrayError busy after too many wrong ones
>>> attempts.failed("192.0.2.1")
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from meshray.coordinator.budgets import Bucket, Rate
from meshray.coordinator.fair_limit import source_of
from meshray.errors import MeshrayError

#: The wrong passes of one address (IPv6: of one /64), and of its network (a /24 or /48).
OF_ADDRESS, OF_NETWORK = Rate(1 / 6, 10), Rate(1, 60)
#: The number of addresses and networks that are remembered; beyond it, the oldest is evicted.
MAX_SOURCES = 4096


class Attempts:
    """The wrong passes of the last minutes.

    Args:
        clock: a monotonic clock, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def require(self, address: str) -> None:
        """Raise MeshrayError ``busy`` if this address or its network showed too many wrong passes."""
        now = self._clock()
        for key, rate in _keys(address):
            bucket = self._buckets.get(key)
            if bucket is not None and bucket.remaining(rate, now) < 1:
                raise MeshrayError("busy", "too many wrong passes came from this network", hint="try again in a minute")

    def failed(self, address: str) -> None:
        """Count one wrong pass of this address."""
        now = self._clock()
        for key, rate in _keys(address):
            bucket = self._buckets.setdefault(key, Bucket(now))
            bucket.spend(1, rate, now)
            self._buckets.move_to_end(key)
        while len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)


def _keys(address: str) -> tuple[tuple[str, Rate], ...]:
    source = source_of(address)
    return ((" ".join(source), OF_ADDRESS), (source[0], OF_NETWORK))
