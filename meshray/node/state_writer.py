"""Write the state files of this node, and retry failed writes.

If the disk is full or read-only, the node continues with its state in memory, reports it, and writes later.

>>> files = StateWriter(home)
>>> files.write("the map", lambda: save_map(home, mesh_map))
>>> files.problems()
(Problem(code='disk_space', text='the map cannot be kept on disk (/var/lib/meshray: No space left on device); …', …),)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from meshray.home import Home
from meshray.model.problem import Problem

log = logging.getLogger(__name__)

#: The interval at which failed writes are retried, seconds.
RETRY_S = 1.0


class StateWriter:
    """Write files, and keep the last failed write of each."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._failed: dict[str, tuple[Callable[[], None], Problem]] = {}

    def write(self, what: str, write: Callable[[], None]) -> None:
        """Write now, or keep the write for `run`.

        Args:
            what: the subject of the message about it, for example "the map".
            write: raises OSError if the disk cannot be written; it may be called again much later.
        """
        try:
            write()
        except OSError as error:
            if what not in self._failed:
                log.error("%s cannot be written: %s", what, error)
            text = f"{what} cannot be kept on disk ({self._home.state}: {error.strerror or error})"
            fix = f"df -h {self._home.state}; meshray doctor"
            self._failed[what] = write, Problem("disk_space", f"{text}; this node continues without it", fix=fix)
        else:
            if self._failed.pop(what, None):
                log.info("%s is on disk again", what)

    async def run(self) -> None:
        """Retry the failed writes at intervals, until cancelled."""
        while True:
            await asyncio.sleep(RETRY_S)
            self.retry()

    def retry(self) -> None:
        """Retry the failed writes."""
        for what, (write, _) in list(self._failed.items()):
            self.write(what, write)

    def problems(self) -> tuple[Problem, ...]:
        """Return a problem for each failed write."""
        return tuple(problem for _, problem in self._failed.values())
