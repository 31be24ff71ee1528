"""Write the state files of this node, and retry failed writes.

If the disk is full or read-only, the node continues with its state in memory, reports it, and writes later. A large
file that changes often is written by a thread, once for all changes within a second or more.

>>> files = StateWriter(home)
>>> files.write("the map", lambda: save_map(home, mesh_map))
>>> files.problems()
(Problem(code='disk_space', text='the map cannot be kept on disk (/var/lib/meshray: No space left on device); …', …),)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from meshray.home import Home
from meshray.model.problem import Problem

log = logging.getLogger(__name__)

#: The interval at which failed writes are retried, seconds.
RETRY_S = 1.0
#: Waiting writes take at most this part of the time: the next ones wait this many times as long as the last took.
COST_FACTOR = 20.0


class StateWriter:
    """Write files, and keep the last failed write of each."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._failed: dict[str, tuple[Callable[[], None], Problem]] = {}
        self._waiting: dict[str, Callable[[], None]] = {}
        # The write that a thread makes now.
        self._begun: tuple[str, Callable[[], None], asyncio.Future[None]] | None = None

    def write(self, what: str, write: Callable[[], None]) -> None:
        """Write now, or keep the write for `run`.

        Args:
            what: the subject of the message about it, for example "the map".
            write: raises OSError if the disk cannot be written; it may be called again much later.
        """
        if self._begun is not None and self._begun[0] == what and not self._begun[2].done():
            # An older state is being written; it must not become the last one.
            return self.write_later(what, write)
        self._waiting.pop(what, None)
        try:
            write()
        except OSError as error:
            self._set_failed(what, write, error)
        else:
            self._set_written(what)
        return None

    def write_later(self, what: str, write: Callable[[], None]) -> None:
        """Let `run` write within seconds, or `flush`. The arguments are those of `write`; the newest write counts.

        ``write`` is called in another thread.
        """
        self._waiting[what] = write

    async def run(self) -> None:
        """Make the waiting writes and retry the failed ones at intervals, until cancelled."""
        while True:
            began = time.monotonic()
            await self._write_waiting()
            await asyncio.sleep(max(RETRY_S, COST_FACTOR * (time.monotonic() - began)))
            self.retry()

    async def flush(self) -> None:
        """Make all waiting writes, after `run` was cancelled."""
        if self._begun is not None:
            what, write, done = self._begun
            try:
                await done
            except OSError:
                self._waiting.setdefault(what, write)
            self._begun = None
        for what, write in list(self._waiting.items()):
            self.write(what, write)

    async def _write_waiting(self) -> None:
        for what in list(self._waiting):
            # A write that was made at once meanwhile has replaced it.
            write = self._waiting.pop(what, None)
            if write is None:
                continue
            done = asyncio.get_running_loop().run_in_executor(None, write)
            self._begun = what, write, done
            try:
                await asyncio.shield(done)
            except OSError as error:
                self._set_failed(what, write, error)
            else:
                self._set_written(what)
            self._begun = None

    def _set_failed(self, what: str, write: Callable[[], None], error: OSError) -> None:
        if what not in self._failed:
            log.error("%s cannot be written: %s", what, error)
        text = f"{what} cannot be kept on disk ({self._home.state}: {error.strerror or error})"
        fix = f"df -h {self._home.state}; meshray doctor"
        self._failed[what] = write, Problem("disk_space", f"{text}; this node continues without it", fix=fix)

    def _set_written(self, what: str) -> None:
        if self._failed.pop(what, None):
            log.info("%s is on disk again", what)

    def retry(self) -> None:
        """Retry the failed writes."""
        for what, (write, _) in list(self._failed.items()):
            self.write(what, write)

    def problems(self) -> tuple[Problem, ...]:
        """Return a problem for each failed write."""
        return tuple(problem for _, problem in self._failed.values())
