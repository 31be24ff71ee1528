"""What an agent reported and is not applied yet: the newest report of each kind, however many came.

>>> reports = Reports()
>>> reports.put("hello", first); reports.put("hello", second)
>>> await (await reports.next())()          # second, alone
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

#: Applies one report.
Apply = Callable[[], Awaitable[None]]


class Reports:
    """See the module's text."""

    def __init__(self) -> None:
        self._waiting: dict[str, Apply] = {}
        self._wake = asyncio.Event()

    def put(self, kind: str, apply: Apply) -> None:
        """Adds a report in place of the one of its kind that still waits."""
        self._waiting[kind] = apply
        self._wake.set()

    async def next(self) -> Apply:
        """The report that has waited longest, when there is one."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.pop(next(iter(self._waiting)))
