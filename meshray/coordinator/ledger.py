"""The registry as it is now: one change after another, on disk before anybody is answered.

Changes that come while the disk is busy are written together with the next write, so a hundred
simultaneous enrolments cost a few synced writes and not a hundred.

>>> ledger = Ledger(store.load(), store.apply, on_change=publisher.changed)
>>> member = await ledger.change(lambda registry: registry.enrol(request, …))
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, cast

from meshray.coordinator.records import PutMember, PutTimeline, RowChange, RowChanges
from meshray.coordinator.registry import Outcome, Registry

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass
class _Request(Generic[T]):
    step: Callable[[Registry], Outcome[T]]
    durable: bool
    answer: T | None = None
    error: Exception | None = None


class Ledger:
    """The only writer of the registry.

    Args:
        write: puts rows on disk, all or none; runs in a thread of the ledger's own.
        on_change: called after every change that other nodes can see.
    """

    def __init__(self, registry: Registry, write: Callable[[RowChanges], None], on_change: Callable[[], None]) -> None:
        self.registry = registry
        self._write = write
        self._on_change = on_change
        self._waiting: list[_Request[object]] = []
        # What the registry has and the disk could not take.
        self._owed: dict[str, RowChange] = {}
        self._failing = False
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "store")

    async def change(self, step: Callable[[Registry], Outcome[T]], *, durable: bool = True) -> T:
        """Takes one step from the registry as it is when the step's turn has come.

        Args:
            durable: False for what agents say again whenever they connect: where the disk cannot be written it
                counts all the same, and is written once it can. Such a step removes nobody.

        Returns when the step's rows are on disk. Raises what the step raises, or what the write does; then
        nothing changed. A caller that is cancelled meanwhile leaves the step to be finished without him.
        """
        request = _Request(step, durable)
        self._waiting.append(cast("_Request[object]", request))
        await asyncio.shield(self._flush())
        if request.error is not None:
            raise request.error
        return cast("T", request.answer)

    async def close(self) -> None:
        """Returns when the last write has ended."""
        await self._flush()
        self._thread.shutdown()

    async def _flush(self) -> None:
        async with self._lock:
            batch, self._waiting = self._waiting, []
            registry, rows = self._take(batch)
            rows = [*self._owed.values(), *rows]
            if rows:
                lineage = registry.lineage.written()
                rows.append(PutTimeline(lineage.run, lineage.serial))
                try:
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._write, tuple(rows))
                except Exception as error:
                    registry = self._without_disk(batch, error)
                else:
                    registry = replace(registry, lineage=lineage)
                    self._written()
            seen = registry.revision != self.registry.revision
            self.registry = registry
            if seen:
                self._on_change()

    def _without_disk(self, batch: list[_Request[object]], error: Exception) -> Registry:
        """The registry after those steps that need not be written; the others fail."""
        (_log.debug if self._failing else _log.error)("%d changes were not written: %s", len(batch), error)
        self._failing = True
        for request in batch:
            if request.durable:
                request.error = request.error or error
        registry, rows = self._take([request for request in batch if not request.durable])
        for row in rows:
            key = row.member.node.id if isinstance(row, PutMember) else type(row).__name__
            # The newest of each; it comes last, as it was made.
            self._owed.pop(key, None)
            self._owed[key] = row
        return registry

    def _written(self) -> None:
        self._owed.clear()
        if self._failing:
            self._failing = False
            _log.warning("the database can be written again")

    def _take(self, batch: list[_Request[object]]) -> tuple[Registry, list[RowChange]]:
        registry, rows = self.registry, list[RowChange]()
        for request in batch:
            try:
                registry, more, request.answer = request.step(registry)
            except Exception as error:
                # Its own failure: those who are written together with it must not share it.
                request.error = error
            else:
                rows.extend(more)
        return registry, rows
