"""The relay's WebSocket on a transport that only records: heartbeat, pauses, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.protocol.connection import CLOSE_BAD_MESSAGE
from meshray.relay import relay_websocket
from meshray.relay.frames import MAX_MESSAGE_BYTES, FrameError
from meshray.relay.relay_websocket import RelayWebSocket
from meshray.relay.websocket_frames import BINARY, CLOSE, PING, PONG, TEXT, close_code, frame_header, read_frame


class Wire(asyncio.Transport):
    """A transport that keeps what is written; `lose` ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol = Http()
        self.data, self.ended = b"", ""

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high and high <= 128 * 1024

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return bool(self.ended)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data

    def close(self) -> None:
        self._lose("closed")

    def abort(self) -> None:
        self._lose("aborted")

    def _lose(self, how: str) -> None:
        if not self.ended:
            self.ended = how
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def frames(self) -> list[tuple[int, bytes]]:
        """Return the opcodes and payloads of the frames that were written."""
        rest, found = memoryview(self.data), []
        while rest:
            frame = read_frame(rest, masked=False, limit=1 << 20)
            assert frame is not None
            found.append((frame.opcode, bytes(rest[frame.begin : frame.end])))
            rest = rest[frame.end :]
        return found


class Http(asyncio.Protocol):
    """The library's protocol, which had the connection before."""

    lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class Server:
    """The server's end of a connection."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.http = self.wire.protocol
        self.messages: list[bytes] = []
        self.resumed = 0
        self.websocket = RelayWebSocket(self.wire, self._message, self._resume, is_client=False)

    def _message(self, message: memoryview) -> None:
        if bytes(message) == b"malformed":
            raise FrameError("this message is malformed")
        self.messages.append(bytes(message))

    def _resume(self) -> None:
        self.resumed += 1

    def receive(self, data: bytes) -> None:
        """Pass bytes as the event loop does: into the buffer, as much as fits at once."""
        while data:
            buffer = self.websocket.get_buffer(-1)
            part, data = data[: len(buffer)], data[len(buffer) :]
            assert part
            buffer[: len(part)] = part
            self.websocket.buffer_updated(len(part))


def sent(payload: bytes, opcode: int = BINARY) -> bytes:
    return frame_header(opcode, len(payload), masked=True) + payload


@given(st.lists(st.binary(max_size=400), max_size=12), st.lists(st.integers(1, 700), min_size=1, max_size=12))
def test_messages_arrive_whole_however_the_bytes_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    async def scenario() -> None:
        server, data = Server(), b"".join(map(sent, messages))
        for place in range(len(data)):
            size = cuts[place % len(cuts)]
            server.receive(data[:size])
            data = data[size:]
        assert server.messages == messages
        server.wire.abort()
        await server.websocket.close(1000)

    asyncio.run(scenario())


async def test_the_longest_messages_pass_one_after_the_other() -> None:
    server = Server()
    messages = [bytes([number]) * MAX_MESSAGE_BYTES for number in range(4)]
    server.receive(b"".join(map(sent, messages)))
    assert server.messages == messages


@pytest.mark.parametrize(
    "data", [sent(b"malformed"), sent(b"text", TEXT), frame_header(BINARY, 3, masked=False) + b"abc"]
)
async def test_what_follows_a_malformed_message_is_ignored(data: bytes) -> None:
    server = Server()
    server.receive(sent(b"first") + data + sent(b"second"))
    server.receive(sent(b"third"))
    assert server.messages == [b"first"]
    ((opcode, payload),) = server.wire.frames()
    assert (opcode, close_code(payload)) == (CLOSE, CLOSE_BAD_MESSAGE)
    assert server.websocket.error
    await asyncio.wait_for(server.websocket.wait_closing(), 1)


async def test_pings_are_answered_except_while_nothing_more_can_be_sent() -> None:
    server = Server()
    server.receive(sent(b"one", PING))
    server.websocket.pause_writing()
    assert not server.websocket.writable
    server.receive(sent(b"two", PING) * 1000)
    server.websocket.resume_writing()
    assert (server.websocket.writable, server.resumed) == (True, 1)
    server.receive(sent(b"three", PING))
    assert server.wire.frames() == [(PONG, b"one"), (PONG, b"three")]


async def test_the_other_side_closes() -> None:
    server = Server()
    server.receive(sent(b"\x03\xe9bye", CLOSE))
    assert server.websocket.close_code == 1001
    await asyncio.wait_for(server.websocket.close(1000), 1)
    assert [opcode for opcode, _ in server.wire.frames()] == [CLOSE]
    assert server.wire.ended == "closed"
    assert isinstance(server.http, Http)
    assert server.http.lost


async def test_a_side_that_does_not_close_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_websocket, "CLOSE_S", 0.05)
    server = Server()
    closing = asyncio.get_running_loop().create_task(server.websocket.close(1001, "ending"))
    await asyncio.sleep(0)
    server.websocket.send([b"too late"])
    server.receive(sent(b"too late"))
    assert not server.messages
    await asyncio.wait_for(closing, 2)
    assert server.wire.ended == "aborted"
    assert [opcode for opcode, _ in server.wire.frames()] == [CLOSE]


async def test_a_silent_side_is_pinged_and_then_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_websocket, "HEARTBEAT_S", 0.1)
    server = Server()
    for _ in range(6):
        await asyncio.sleep(0.05)
        server.receive(sent(b"data"))
    assert not server.wire.data, "data is an answer"
    await asyncio.wait_for(server.websocket.wait_closing(), 5)
    assert server.wire.frames() == [(PING, b"")]
    assert server.wire.ended == "aborted"


async def test_a_side_that_answers_pings_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_websocket, "HEARTBEAT_S", 0.1)
    server, answered = Server(), 0
    while answered < 3:
        await asyncio.sleep(0.01)
        pings = len(server.wire.frames())
        if pings > answered:
            answered = pings
            server.receive(sent(b"", PONG))
    assert not server.wire.ended
    server.wire.abort()


async def test_a_connection_that_was_lost_during_the_handshake_is_closed() -> None:
    wire = Wire()
    wire.abort()
    websocket = RelayWebSocket(wire, lambda message: None, lambda: None, is_client=False)
    await asyncio.wait_for(websocket.close(1000), 1)
    assert not wire.data
