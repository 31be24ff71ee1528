"""A question to agents: one from which nothing comes is not awaited for as long as one that works on its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from meshray.coordinator import query_broker
from meshray.coordinator.publisher import Publisher
from meshray.coordinator.query_broker import Gathered, QueryBroker
from meshray.coordinator.tcp_state import TcpState
from meshray.protocol.connection import Message

EARLY_S, LATE_S, LIMIT_S = 0.1, 0.2, 0.6
BEFORE = TcpState(received=100, acknowledged=100, received_ago_s=42.0, is_delivered=True)


class Agents:
    """The publisher of a coordinator whose agents are connected and never answer.

    Args:
        after: the state of each connection once the question has been sent.
    """

    def __init__(self, after: TcpState | None) -> None:
        self.state: TcpState | None = BEFORE if after is not None else None
        self.after = after

    def is_connected(self, node_id: str) -> bool:
        return bool(node_id)

    def notify(self, node_id: str, message: Message) -> None:
        assert node_id and message

    def ping(self, node_id: str) -> None:
        assert node_id
        self.state = self.after

    def tcp_state(self, node_id: str) -> TcpState | None:
        return self.state if node_id else None


async def gathered(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> tuple[Gathered, float]:
    """Ask the node gpu-1; return the result and the seconds that it took."""
    monkeypatch.setattr(query_broker, "UNACKNOWLEDGED_S", EARLY_S)
    monkeypatch.setattr(query_broker, "MUTE_S", LATE_S)
    began = time.monotonic()
    found = await QueryBroker(cast(Publisher, agents)).ask({"n1": "gpu-1"}, "survey", LIMIT_S)
    return found, time.monotonic() - began


@pytest.mark.parametrize(
    ("after", "waited_s", "words"),
    [
        (BEFORE, EARLY_S, "nothing came from its agent for 42 s, and nothing that is sent to it is acknowledged"),
        (
            replace(BEFORE, acknowledged=150),
            LATE_S,
            "nothing came from its agent for 42 s, although what is sent to it is acknowledged",
        ),
        # A slow line: the ping may still wait behind a map.
        (replace(BEFORE, acknowledged=150, is_delivered=False), LIMIT_S, "its agent did not answer in 1 s"),
        # It answered the ping, and works on its answer.
        (replace(BEFORE, received=102, acknowledged=150), LIMIT_S, "its agent did not answer in 1 s"),
        (None, LIMIT_S, "its agent did not answer in 1 s"),
    ],
)
async def test_how_long_an_agent_without_an_answer_is_awaited(
    after: TcpState | None, waited_s: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, took_s = await gathered(Agents(after), monkeypatch)
    assert found.silent == {"gpu-1": words}
    assert (found.connections != {}) == (waited_s < LIMIT_S)
    assert took_s >= waited_s - 0.01
    if waited_s < LIMIT_S:
        assert took_s < LIMIT_S


async def test_the_kernel_counts_what_comes_and_what_is_acknowledged() -> None:
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    other = await accepted.get()

    def state() -> TcpState:
        found = TcpState.of(cast(asyncio.Transport, other.transport))
        assert found is not None
        return found

    async def until(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline, state()
            await asyncio.sleep(0.01)

    first = state()
    writer.write(b"x" * 1000)
    await until(lambda: state().received == first.received + 1000)
    await asyncio.sleep(0.3)
    assert 0.2 < state().received_ago_s < 10
    other.write(b"y" * 500)
    await reader.readexactly(500)
    await until(lambda: state().acknowledged == first.acknowledged + 500 and state().is_delivered)
    assert state().received == first.received + 1000
    # A program that reads nothing: its machine acknowledges until its buffers are full.
    cast(asyncio.Transport, writer.transport).pause_reading()
    other.write(b"z" * (64 << 20))
    await asyncio.sleep(0.1)
    assert not state().is_delivered
    for one in (other, writer):
        one.transport.abort()
    server.close()
