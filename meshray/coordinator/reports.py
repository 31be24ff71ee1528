"""An agent's reports that are not applied yet: only the newest of each kind.

>>> reports = Reports()
>>> reports.put("hello", first); reports.put("hello", second)
>>> await (await reports.next())()          # second, alone
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

#: A function that applies one report.
Apply = Callable[[], Awaitable[None]]


class Reports:
    """The pending reports; see the module's docstring."""

    def __init__(self) -> None:
        self._waiting: dict[str, Apply] = {}
        self._wake = asyncio.Event()

    def put(self, kind: str, apply: Apply) -> None:
        """Add a report, replacing a pending one of its kind."""
        self._waiting[kind] = apply
        self._wake.set()

    async def next(self) -> Apply:
        """Return the report that has waited longest, when there is one."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.pop(next(iter(self._waiting)))
