"""An agent's connection: whole frames, in pieces, at the speed of a reader; and when an agent does not read."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer

from meshray.coordinator import message_writer
from meshray.coordinator.journal import Journal
from meshray.coordinator.map_messages import MapMessages
from meshray.coordinator.message_writer import FRAGMENT_BYTES, MessageWriter, fragments, received_bytes
from meshray.coordinator.publisher import Outbox

from .people import new_mesh


class Wire:
    """A transport whose other side takes one piece at a time, and only while it reads."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.written: list[bytes] = []
        self.waiting = self.most = 0
        self.expected = 0
        self.has_all = asyncio.Event()

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == FRAGMENT_BYTES

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def _read(self) -> None:
        self.waiting = 0

    def get_extra_info(self, _: str) -> None:
        """Return no socket: it has acknowledged nothing."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.waiting += len(data)
        self.most = max(self.most, self.waiting)
        if self.reads:
            asyncio.get_running_loop().call_soon(self._read)
        if len(self.written) >= self.expected:
            self.has_all.set()


async def write(wire: Wire, *messages: bytes) -> Outbox:
    """Write these messages after a map, and return when the writer has ended."""
    outbox = Outbox(MapMessages(Journal(new_mesh().map)))

    wire.expected = 1 + sum(len(fragments(message)) for message in messages)

    async def first_map_sent() -> None:
        for number, message in enumerate(messages):
            outbox.put(str(number), message)

    writer = MessageWriter(outbox, cast("asyncio.Transport", wire))
    outbox.publish()
    running = asyncio.get_running_loop().create_task(writer.run(first_map_sent))
    await asyncio.wait_for(wire.has_all.wait(), 10)
    outbox.close(1001, "")
    await asyncio.wait_for(running, 10)
    return outbox


@pytest.mark.parametrize("size", [0, 1, 125, 126, FRAGMENT_BYTES - 1, FRAGMENT_BYTES, FRAGMENT_BYTES + 1, 300_000])
async def test_aiohttp_reads_messages_of_any_length(size: int) -> None:
    text = "x" * size

    async def answer(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(compress=False)
        await websocket.prepare(request)
        assert request.transport is not None
        for frame in fragments(text.encode()):
            assert len(frame) <= FRAGMENT_BYTES + 10
            request.transport.write(frame)
            await websocket.ping()
        await websocket.receive()
        return websocket

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestClient(TestServer(app)) as client, client.ws_connect("/") as websocket:
        received = await websocket.receive(10)
    assert (received.type, received.data) == (WSMsgType.TEXT, text)


async def test_what_waits_is_bounded() -> None:
    wire = Wire()

    message = b"y" * (5 * FRAGMENT_BYTES)
    await write(wire, message)
    assert b"".join(wire.written).endswith(message[-1000:])
    assert wire.most < 2 * FRAGMENT_BYTES + 1000


async def test_an_agent_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_writer, "SEND_S", 0.05)
    monkeypatch.setattr(message_writer, "received_bytes", lambda _: 7)
    outbox = Outbox(MapMessages(Journal(new_mesh().map)))
    wire = Wire(reads=False)
    wire.waiting = FRAGMENT_BYTES
    writer = MessageWriter(outbox, cast("asyncio.Transport", wire))
    outbox.publish()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(writer.run(never), 10)
    assert not wire.written


async def test_an_agent_that_acknowledges_bytes_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged = iter(range(1000))
    monkeypatch.setattr(message_writer, "SEND_S", 0.02)
    monkeypatch.setattr(message_writer, "received_bytes", lambda _: next(acknowledged))
    outbox = Outbox(MapMessages(Journal(new_mesh().map)))
    wire = Wire(reads=False)
    wire.waiting = FRAGMENT_BYTES
    writer = MessageWriter(outbox, cast("asyncio.Transport", wire))
    outbox.publish()
    running = asyncio.get_running_loop().create_task(writer.run(never))
    await asyncio.sleep(0.2)
    assert not running.done(), "it is awaited ten times as long as one that acknowledges nothing"
    wire.waiting = 0
    wire.reads = True
    await asyncio.wait_for(wire.has_all.wait(), 10)
    running.cancel()


async def never() -> None:
    """Take part in no event."""


async def test_acknowledged_bytes_grow_while_the_other_side_reads() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    _, writer = await asyncio.open_connection(sock=accepted)
    before = received_bytes(writer.transport)
    writer.write(b"x" * 1000)
    client.setblocking(False)
    assert len(await loop.sock_recv(client, 1000)) == 1000
    for _ in range(100):
        if received_bytes(writer.transport) >= before + 1000:
            break
        await asyncio.sleep(0.01)
    assert received_bytes(writer.transport) == before + 1000
    assert received_bytes(None) == 0
    writer.close()
    client.close()
