"""Questions to agents: sent to all at once; answers are gathered until all agents have answered or the time is over.

>>> gathered = await queries.ask({"n2": "gpu-1", "n3": "gpu-2"}, "survey", timeout_s=10)
>>> gathered.answers, gathered.silent
({'gpu-1': {…}}, {'gpu-2': 'its agent is not connected to the coordinator'})

Each question comes with a ping, which an agent answers at once. So an agent from which nothing comes is not awaited for
as long as one that is working on its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from meshray.coordinator.publisher import Publisher
from meshray.coordinator.tcp_state import TcpState
from meshray.errors import MeshrayError
from meshray.protocol.api import SilentConnection
from meshray.protocol.connection import Answer, Ask

#: The number of open questions: each holds up to an answer of every node in memory.
MAX_OPEN = 4
#: An agent from whose machine not even an acknowledgement came by then is not awaited, seconds: a lost packet was sent
#: again several times (RFC 6298).
UNACKNOWLEDGED_S = 2.5
#: The same for an agent whose machine acknowledges the question while the agent does not answer the ping, seconds: it
#: may be busy.
MUTE_S = 4.0

NOT_CONNECTED = "its agent is not connected to the coordinator"
_DISCONNECTED = "its agent's connection ended before it answered"


@dataclass
class Gathered:
    """The answers by the node's name, and the nodes that did not answer, with the reason.

    Attributes:
        connections: the state of the connections on which nothing came since the question was sent.
    """

    answers: dict[str, dict[str, object]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    connections: dict[str, SilentConnection] = field(default_factory=dict)


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
        waiting = self._open[question.id] = _Open(dict(connected), self._publisher.tcp_state)
        waiting.gathered.silent.update({name: NOT_CONNECTED for key, name in nodes.items() if key not in connected})
        try:
            for node_id in connected:
                self._publisher.notify(node_id, question)
                self._publisher.ping(node_id)
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

    def __init__(self, missing: dict[str, str], tcp_state: Callable[[str], TcpState | None]) -> None:
        self.missing = missing
        self._tcp_state = tcp_state
        self._before = {node_id: tcp_state(node_id) for node_id in missing}
        self._began = time.monotonic()
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
        for until_s in (*(early_s for early_s in (UNACKNOWLEDGED_S, MUTE_S) if early_s < timeout_s), timeout_s):
            if self.missing:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._complete.wait(), until_s - (time.monotonic() - self._began))
            for node_id, connection in list(self._mute(is_busy_excused=until_s < MUTE_S)):
                self.gathered.connections[self.missing[node_id]] = connection
                self.take(node_id, Answer("", error=_describe(connection)))

    def _mute(self, *, is_busy_excused: bool) -> Iterator[tuple[str, SilentConnection]]:
        """Yield the ids of the nodes from which nothing came, with their connections."""
        for node_id in self.missing:
            before, state = self._before[node_id], self._tcp_state(node_id)
            if before is None or state is None or state.received != before.received:
                continue
            acknowledged = state.acknowledged != before.acknowledged
            if not acknowledged or (state.is_delivered and not is_busy_excused):
                yield node_id, SilentConnection(state.received_ago_s, acknowledged)


def _describe(connection: SilentConnection) -> str:
    since = f"nothing came from its agent for {connection.received_ago_s:.0f} s"
    if connection.acknowledged:
        return f"{since}, although what is sent to it is acknowledged"
    return f"{since}, and nothing that is sent to it is acknowledged"
