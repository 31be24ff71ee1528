"""Questions to agents: sent to all at once; answers are gathered until all agents have answered or the time is over.

>>> gathered = await queries.ask({"n2": "gpu-1", "n3": "gpu-2"}, "survey", timeout_s=10)
>>> gathered.answers, gathered.silent
({'gpu-1': {…}}, {'gpu-2': 'its agent is not connected to the coordinator'})
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.coordinator.publisher import Publisher
from meshray.errors import MeshrayError
from meshray.protocol.connection import Answer, Ask

#: The number of open questions: each holds up to an answer of every node in memory.
MAX_OPEN = 4

NOT_CONNECTED = "its agent is not connected to the coordinator"
_DISCONNECTED = "its agent's connection ended before it answered"


@dataclass
class Gathered:
    """The answers by the node's name, and the nodes that did not answer, with the reason."""

    answers: dict[str, dict[str, object]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)


class QueryBroker:
    """The open questions. Needs an event loop."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._open: dict[str, _Open] = {}

    async def ask(self, nodes: Mapping[str, str], op: str, timeout_s: float) -> Gathered:
        """Ask these nodes (names by id) and wait for all of them, but at most ``timeout_s`` seconds.

        Raises:
            MeshrayError: ``busy``: `MAX_OPEN` questions are already open.
        """
        if len(self._open) >= MAX_OPEN:
            raise MeshrayError(
                "busy", "the coordinator is still waiting for answers to other questions", hint="try again"
            )
        connected = {node_id: name for node_id, name in nodes.items() if self._publisher.is_connected(node_id)}
        question = Ask(secrets.token_hex(8), op)
        waiting = self._open[question.id] = _Open(dict(connected))
        waiting.gathered.silent.update({name: NOT_CONNECTED for key, name in nodes.items() if key not in connected})
        try:
            for node_id in connected:
                self._publisher.notify(node_id, question)
            await waiting.until_all(timeout_s)
        finally:
            del self._open[question.id]
        for name in waiting.missing.values():
            waiting.gathered.silent[name] = f"its agent did not answer in {timeout_s:.0f} s"
        return waiting.gathered

    def take(self, node_id: str, answer: Answer) -> None:
        """Record one node's answer; ignore it if the node was not asked, or has answered."""
        waiting = self._open.get(answer.id)
        if waiting is not None:
            waiting.take(node_id, answer)

    def disconnected(self, node_id: str) -> None:
        """Record that the node's connection ended: no answer will come from there."""
        for question_id, waiting in self._open.items():
            waiting.take(node_id, Answer(question_id, error=_DISCONNECTED))


class _Open:
    """One question: the nodes that still have to answer (names by id), and the answers."""

    def __init__(self, missing: dict[str, str]) -> None:
        self.missing = missing
        self.gathered = Gathered()
        self._complete = asyncio.Event()

    def take(self, node_id: str, answer: Answer) -> None:
        name = self.missing.pop(node_id, None)
        if name is None:
            return
        if answer.error:
            self.gathered.silent[name] = answer.error
        else:
            self.gathered.answers[name] = answer.answer
        if not self.missing:
            self._complete.set()

    async def until_all(self, timeout_s: float) -> None:
        if self.missing:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._complete.wait(), timeout_s)
