"""Limits for proxied exchanges: their number, and the time that each may go without progress.

>>> limits = ProxyLimits(per_viewer=48, total=256)
>>> with limits.taking("pass 3f"):          # ProxyLimits.taking raises ProxyError busy if there are too many
...     ...
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

from meshray.web.proxy_targets import ProxyError

#: The concurrent exchanges (requests, WebSockets, tunnels) of one viewer, and of all. Each has at most half a megabyte
#: in buffers. `meshray.coordinator.connection_limits` would end a viewer's oldest stream at a higher number.
MAX_OF_VIEWER, MAX_EXCHANGES = 48, 256
#: The largest body of a request, bytes. Ray's own limit for the files of a job is 100 MiB.
MAX_UPLOAD_BYTES = 256 * 1024 * 1024
#: The time limits, seconds: for a connection to the program, for the start of its answer after the last byte of the
#: request, and without any byte in either direction.
CONNECT_S, FIRST_BYTE_S, IDLE_S = 5.0, 60.0, 300.0
#: The interval at which each exchange is checked, seconds.
_LOOK_S = 1.0

T = TypeVar("T")


class ProxyLimits:
    """The counters of the exchanges in progress."""

    def __init__(self, per_viewer: int = MAX_OF_VIEWER, total: int = MAX_EXCHANGES) -> None:
        self.per_viewer = per_viewer
        self.total = total
        self._of: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """The number of exchanges in progress."""
        return self._of.total()

    @contextlib.contextmanager
    def taking(self, viewer: str) -> Iterator[None]:
        """Count one exchange of this viewer while it is in progress.

        Raises:
            ProxyError: ``busy``.
        """
        if self._of[viewer] >= self.per_viewer:
            raise _busy(f"This session has {self.per_viewer} requests to programs in progress.")
        if self.count >= self.total:
            raise _busy("The coordinator passes on as many requests to programs as it can.")
        self._of[viewer] += 1
        try:
            yield
        finally:
            self._of[viewer] -= 1
            if not self._of[viewer]:
                del self._of[viewer]


class Watch:
    """A watchdog of one exchange: it ends the exchange without progress, or after the browser has disconnected.

    Args:
        is_gone: whether the browser has closed the connection.
        limit_s: seconds without progress.
    """

    def __init__(self, is_gone: Callable[[], bool], limit_s: float) -> None:
        self._is_gone = is_gone
        self.limit_s = limit_s
        self._at = asyncio.get_running_loop().time()

    def touch(self) -> None:
        """Record progress."""
        self._at = asyncio.get_running_loop().time()

    async def run(self, work: Coroutine[object, object, T]) -> T:
        """Return the result of the work.

        Raises:
            TimeoutError: it made no progress for too long.
            ConnectionResetError: the browser has closed the connection.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        try:
            while True:
                due = min(_LOOK_S, max(0.0, self._at + self.limit_s - loop.time()))
                done, _ = await asyncio.wait({task}, timeout=due)
                if done:
                    return task.result()
                if self._is_gone():
                    raise ConnectionResetError("the browser has closed the connection")
                if loop.time() - self._at >= self.limit_s:
                    raise TimeoutError
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=_LOOK_S)


def _busy(message: str) -> ProxyError:
    return ProxyError(429, "busy", message, hint="try again in a minute")
