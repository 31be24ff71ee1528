"""Keep Ray's node table correct, on the node of the Ray head: remove nodes that left, went down, died or were replaced.

    map changed ──► Ray's table, a few times ──► find_dead_entries ──► UnregisterNode

Ray itself would detect them only after its own timeout, and would assign tasks to dead nodes until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from meshray.agent.dependencies import RayPart
from meshray.agent.ray.dead_entries import DeadEntry, find_dead_entries
from meshray.agent.ray.last_resources import LastResources
from meshray.model.meshmap import MeshMap

#: After a change the table is read at this interval, for this long; a raylet that ends needs a second to unregister.
_CHECK_S = 0.5
_BUSY_S = 6.0
#: The time that a raylet has to end on its own.
_UNREGISTER_S = 1.5
#: The interval at which the table is read when nothing changed: a raylet may be killed and replaced unnoticed.
_IDLE_CHECK_S = 20.0
#: For this long after a change it retries at once if the head's dashboard did not answer: it may be busy.
_UNREAD_S = 60.0


class TableKeeper:
    """The keeper of the table; see the module's docstring.

    Args:
        current: returns the current map.
        last_resources: gets each table that is read, so that it knows the nodes whose entries are removed.
    """

    def __init__(self, current: Callable[[], MeshMap], last_resources: LastResources) -> None:
        self._current = current
        self._last_resources = last_resources
        self._changed = asyncio.Event()
        self._found_at: dict[str, float] = {}

    def check_soon(self) -> None:
        """Handle a change of the map that may matter to Ray's table."""
        self._changed.set()

    async def run(self, ray: RayPart) -> None:
        """Check the table after each change, and at intervals, until cancelled."""
        changed_at = -_UNREAD_S
        while True:
            if self._changed.is_set():
                self._changed.clear()
                changed_at = time.monotonic()
            was_read = await self._clean(ray)
            is_busy = bool(self._found_at) or time.monotonic() - changed_at < (_BUSY_S if was_read else _UNREAD_S)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _CHECK_S if is_busy else _IDLE_CHECK_S)

    async def _clean(self, ray: RayPart) -> bool:
        """Return whether Ray's table could be read."""
        rows, mesh_map = await ray.live_nodes(), self._current()
        if rows is None:
            return False
        self._last_resources.record(
            {row.ip: row.resources for row in sorted(rows, key=lambda row: row.started)}, mesh_map
        )
        found = {entry.id: entry for entry in find_dead_entries(rows, mesh_map)}
        now = time.monotonic()
        self._found_at = {key: self._found_at.get(key, now) for key in found}
        by_reason: dict[str, list[str]] = {}
        for entry in found.values():
            if self._is_due(entry, now):
                by_reason.setdefault(entry.reason, []).append(entry.id)
        for reason, ids in by_reason.items():
            await ray.unregister(ids, reason)
        return True

    def _is_due(self, entry: DeadEntry, now: float) -> bool:
        return entry.immediate or now - self._found_at[entry.id] >= _UNREGISTER_S
