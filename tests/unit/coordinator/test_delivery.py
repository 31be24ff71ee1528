"""When an agent counts as one that does not read: by the bytes that its machine acknowledges."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web

from meshray.coordinator import agent_connection
from meshray.coordinator.service import Service


class SlowSocket:
    """A socket that accepts a message after this many seconds."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.taken: list[str] = []

    async def send_str(self, message: str) -> None:
        await asyncio.sleep(self.takes_s)
        self.taken.append(message)


async def deliver(slow: SlowSocket) -> None:
    request = cast("web.Request", SimpleNamespace(headers={}, transport=None))
    await agent_connection._AgentConnection(
        cast("Service", None), cast("web.WebSocketResponse", slow), request
    )._deliver("message")


async def test_a_client_that_acknowledges_bytes_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged = iter(range(1000))
    monkeypatch.setattr(agent_connection, "SEND_S", 0.05)
    monkeypatch.setattr(agent_connection, "received_bytes", lambda _: next(acknowledged))
    slow = SlowSocket(0.3)
    await deliver(slow)
    assert slow.taken == ["message"]


async def test_a_client_that_acknowledges_nothing_is_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_connection, "SEND_S", 0.05)
    deaf = SlowSocket(60)
    with pytest.raises(asyncio.TimeoutError):
        await deliver(deaf)
    assert not deaf.taken


async def test_acknowledged_bytes_grow_while_the_other_side_reads() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    _, writer = await asyncio.open_connection(sock=accepted)
    before = agent_connection.received_bytes(writer.transport)
    writer.write(b"x" * 1000)
    client.setblocking(False)
    assert len(await loop.sock_recv(client, 1000)) == 1000
    for _ in range(100):
        if agent_connection.received_bytes(writer.transport) >= before + 1000:
            break
        await asyncio.sleep(0.01)
    assert agent_connection.received_bytes(writer.transport) == before + 1000
    assert agent_connection.received_bytes(None) == 0
    writer.close()
    client.close()
