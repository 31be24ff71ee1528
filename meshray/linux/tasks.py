"""An owner of background tasks: none is lost, and the failure of one is the owner's failure.

>>> tasks = Tasks()
>>> tasks.start(keep_session(), "session")
>>> await tasks.until(stopping)      # raises what the first failing task raised
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

#: Longer than a task needs for its own cleanup, seconds. A connection waits up to a second for the peer's close frame;
#: another cancellation would leave it open.
_CANCEL_AGAIN_S = 1.5


class Tasks:
    """A set of background tasks with a common life (asyncio.TaskGroup needs Python 3.11)."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[BaseException] | None = None

    def start(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` beside the other tasks."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def until(self, event: asyncio.Event) -> None:
        """Wait for the event. Raises the exception of the first task that fails before."""
        failure = self._failure_future()
        waiting = asyncio.get_running_loop().create_task(event.wait())
        try:
            first: set[asyncio.Future[Any]] = {waiting, failure}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if failure.done():
            raise failure.result()

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # Before Python 3.12 asyncio.wait_for loses a cancellation that coincides with its result, so running tasks
            # are cancelled again.
            await asyncio.wait(list(self._tasks), timeout=_CANCEL_AGAIN_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        future = self._failure_future()
        if error is not None and not future.done():
            future.set_result(error)

    def _failure_future(self) -> asyncio.Future[BaseException]:
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        return self._failed
