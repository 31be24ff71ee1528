"""The status of the mesh from the agent beside the coordinator: Ray's state, the resources, and what is wrong.

>>> status = await service.own_agent.status()
>>> status.health if status is not None else ()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from meshray.coordinator.query_broker import QueryBroker
from meshray.errors import MeshrayError, RefusedError
from meshray.model.node import Node
from meshray.protocol.codec import convert
from meshray.protocol.connection import STATUS
from meshray.protocol.status import Status

#: The agent reads Ray's node table first, for which it waits at most 3 s.
_ANSWER_S = 5.0

_log = logging.getLogger(__name__)


def require_askable(op: str) -> None:
    """Raise RefusedError for a question that only the coordinator itself asks."""
    if op == STATUS:
        raise RefusedError("not_askable", "a node's status is not given to other nodes", hint="there: meshray status")


class OwnAgent:
    """The agent beside the coordinator.

    Args:
        own: returns the coordinator's node.
    """

    def __init__(self, queries: QueryBroker, own: Callable[[], Node]) -> None:
        self._queries = queries
        self._own = own
        self._question: asyncio.Task[Status | None] | None = None

    async def status(self) -> Status | None:
        """Return its current status; None if it does not answer. Questions at the same time get one answer."""
        if self._question is None or self._question.done():
            self._question = asyncio.get_running_loop().create_task(self._query())
        return await asyncio.shield(self._question)

    async def _query(self) -> Status | None:
        own = self._own()
        try:
            gathered = await self._queries.ask({own.id: str(own.name)}, STATUS, _ANSWER_S)
            answer = gathered.answers.get(str(own.name))
            return convert(answer, Status) if answer is not None else None
        except MeshrayError as error:
            _log.debug("the coordinator's own agent gave no status: %s", error)
            return None
