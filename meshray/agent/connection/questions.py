"""What the coordinator asks of this agent for another node; see `meshray.protocol.connection`.

One survey at a time, whoever asks and however often: who asks while one is being made gets the same.
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
    """Answers the questions that this agent knows.

    Args:
        operations: by the question's word; what is not among them is answered with an error.
    """

    def __init__(self, operations: Mapping[str, Callable[[], Awaitable[Mapping[str, object]]]]) -> None:
        self._operations = operations
        self._running: dict[str, asyncio.Future[Answer]] = {}

    async def answer(self, question: Ask) -> Answer:
        """The answer, or why there is none; never raises for what an operation raises."""
        running = self._running.get(question.op)
        if running is None:
            running = self._running[question.op] = asyncio.get_running_loop().create_future()
            try:
                running.set_result(await self._answer(question))
            finally:
                del self._running[question.op]
                running.cancel()  # which does nothing once it has its result
        return msgspec.structs.replace(await asyncio.shield(running), id=question.id)

    async def _answer(self, question: Ask) -> Answer:
        operation = self._operations.get(question.op)
        if operation is None:
            return Answer(question.id, error=f"its agent knows no question {question.op!r}")
        try:
            return Answer(question.id, dict(await operation()))
        except MeshrayError as error:
            return Answer(question.id, error=error.message)
        except Exception:  # one question must not end the agent
            log.exception("the question %r could not be answered", question.op)
            return Answer(question.id, error="its agent failed at this question; its log tells why")
