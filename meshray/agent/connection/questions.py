"""Questions that the coordinator forwards from another node; see `meshray.protocol.connection`.

Only one survey runs at a time: a question that comes while one is running gets the same answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from meshray.errors import MeshrayError
from meshray.protocol.connection import Answer, Ask

log = logging.getLogger(__name__)


class Questions:
    """Answer the questions that this agent knows.

    Args:
        operations: by the question's name; others are answered with an error.
    """

    def __init__(self, operations: Mapping[str, Callable[[], Awaitable[Mapping[str, object]]]]) -> None:
        self._operations = operations
        self._running: dict[str, asyncio.Future[Answer]] = {}

    async def answer(self, question: Ask) -> Answer:
        """Return the answer, or the error instead of it; an operation's exceptions are never raised."""
        running = self._running.get(question.op)
        if running is None:
            running = self._running[question.op] = asyncio.get_running_loop().create_future()
            try:
                running.set_result(await self._answer(question))
            finally:
                del self._running[question.op]
                running.cancel()  # This does nothing once it has its result.
        return msgspec.structs.replace(await asyncio.shield(running), id=question.id)

    async def _answer(self, question: Ask) -> Answer:
        operation = self._operations.get(question.op)
        if operation is None:
            return Answer(question.id, error=f"its agent does not know the question {question.op!r}")
        try:
            return Answer(question.id, dict(await operation()))
        except MeshrayError as error:
            return Answer(question.id, error=error.message)
        except Exception:  # A question must not end the agent.
            log.exception("the question %r could not be answered", question.op)
            return Answer(question.id, error="its agent failed to answer this question; its log shows why")
