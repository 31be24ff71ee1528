"""The current registry: one change after another, on disk before its request is answered.

Changes that arrive while the disk is busy are written together by the next write, so a hundred simultaneous enrolments
take a few synced writes and not a hundred.

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
        write: writes rows to disk, all or none; it runs in the ledger's own thread.
        on_change: called after every change that other nodes can see.
    """

    def __init__(self, registry: Registry, write: Callable[[RowChanges], None], on_change: Callable[[], None]) -> None:
        self.registry = registry
        self._write = write
        self._on_change = on_change
        self._waiting: list[_Request[object]] = []
        # Rows of the registry that the disk did not accept.
        self._owed: dict[str, RowChange] = {}
        self._failing = False
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "store")

    async def change(self, step: Callable[[Registry], Outcome[T]], *, durable: bool = True) -> T:
        """Apply one step to the registry's state at the step's turn.

        Args:
            durable: False for reports that agents repeat whenever they connect: they count even if the disk cannot be
                written, and are written later. Such a step removes no node.

        Returns when the step's rows are on disk. Raises the step's or the write's exception; then nothing changed. If
        the caller is cancelled meanwhile, the step still finishes.
        """
        request = _Request(step, durable)
        self._waiting.append(cast("_Request[object]", request))
        await asyncio.shield(self._flush())
        if request.error is not None:
            raise request.error
        return cast("T", request.answer)

    async def between_writes(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the thread of the writes, when every change that was answered is on disk."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Return when the last write has ended."""
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
            is_visible = registry.revision != self.registry.revision
            self.registry = registry
            if is_visible:
                self._on_change()

    def _without_disk(self, batch: list[_Request[object]], error: Exception) -> Registry:
        """Return the registry after those steps that need not be written; the others fail."""
        (_log.debug if self._failing else _log.error)("%d changes were not written: %s", len(batch), error)
        self._failing = True
        for request in batch:
            if request.durable:
                request.error = request.error or error
        registry, rows = self._take([request for request in batch if not request.durable])
        for row in rows:
            key = row.member.node.id if isinstance(row, PutMember) else type(row).__name__
            # The newest of each, at the end, in order of creation.
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
                # A step's own failure: steps that are written together with it must not share it.
                request.error = error
            else:
                rows.extend(more)
        return registry, rows
