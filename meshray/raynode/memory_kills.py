"""Watch whether the kernel kills processes in Ray's control group for lack of memory."""

from __future__ import annotations

import time
from pathlib import Path

from meshray.linux import memory_limit
from meshray.model.ray_end import OUT_OF_MEMORY

#: `ray start` reports the end of one of its processes within seconds, and ends; an older kill is not the cause.
_RECENT_S = 30.0


class MemoryKills:
    """The kills in the control group of one `ray start`, which may have ended when they matter."""

    def __init__(self) -> None:
        self._pid = 0
        self._file: Path | None = None
        self._count: int | None = None
        #: When the count was last seen to rise, monotonic.
        self._killed_at: float | None = None

    def look(self, pid: int) -> None:
        """Compare the count with that of the last time; ``pid``: of the `ray start` that runs."""
        if pid != self._pid:
            self._pid, self._file, self._killed_at = pid, memory_limit.kills_file(pid), None
            self._count = None
        self._compare()

    def explain(self, reason: str) -> str:
        """Return the reason of Ray's end, with the kill that preceded it, if there was one."""
        self._compare()
        if self._killed_at is None or time.monotonic() - self._killed_at > _RECENT_S:
            return reason
        return f"{OUT_OF_MEMORY} in Ray's control group: {reason}"

    def _compare(self) -> None:
        count = memory_limit.kills(self._file) if self._file is not None else None
        if count is None:
            return
        if self._count is not None and count > self._count:
            self._killed_at = time.monotonic()
        self._count = count
