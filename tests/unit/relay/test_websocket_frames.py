"""The frames of the relay's WebSocket: what a library sends is read, and anything else is refused or waits for more."""

from __future__ import annotations

import asyncio
import os

import pytest
from aiohttp import WSMsgType
from aiohttp.http import WebSocketWriter
from hypothesis import given
from hypothesis import strategies as st

from meshray.protocol.connection import CLOSE_TOO_LONG
from meshray.relay.websocket_frames import (
    BINARY,
    CLOSE,
    MAX_CONTROL_BYTES,
    PING,
    PONG,
    TEXT,
    WebSocketError,
    close_code,
    close_payload,
    frame_header,
    read_frame,
    unmasked,
)

LIMIT = 70_000
#: Around each change of the length's form.
LENGTHS = st.one_of(st.integers(0, 130), st.integers(65_530, 65_540), st.integers(0, LIMIT))


@given(LENGTHS, st.booleans())
def test_a_frame_is_read_where_it_ends(length: int, masked: bool) -> None:
    payload = os.urandom(length)
    data = memoryview(frame_header(BINARY, length, masked=masked) + payload + b"next")
    frame = read_frame(data, masked=masked, limit=LIMIT)
    assert frame is not None
    assert (frame.opcode, frame.key, bytes(data[frame.begin : frame.end])) == (BINARY, b"", payload)
    assert bytes(data[frame.end :]) == b"next"
    for part in {0, 1, 2, 5, 9, frame.begin, frame.end - 1} - {frame.end}:
        if part < frame.end:
            assert read_frame(data[:part], masked=masked, limit=LIMIT) is None


class Written(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [0, 1, 125, 126, 1000, 65_535, 65_536, 69_999])
async def test_frames_of_aiohttp_are_read(length: int, masked: bool) -> None:
    """Earlier versions send what aiohttp makes, with a random key."""
    transport, payload = Written(), os.urandom(length)
    writer = WebSocketWriter(None, transport, use_mask=masked)  # type: ignore[arg-type] # it is for waiting only
    await writer.send_frame(payload, WSMsgType.BINARY)
    await writer.send_frame(b"hello", WSMsgType.PING)
    data, found = memoryview(transport.data), []
    while data:
        frame = read_frame(data, masked=masked, limit=LIMIT)
        assert frame is not None
        part = data[frame.begin : frame.end]
        found.append((frame.opcode, unmasked(part, frame.key) if frame.key else bytes(part)))
        data = data[frame.end :]
    assert found == [(BINARY, payload), (PING, b"hello")]


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_masking_is_as_in_the_standard(payload: bytes, key: bytes) -> None:
    assert unmasked(memoryview(payload), key) == bytes(
        byte ^ key[place % 4] for place, byte in enumerate(payload)
    )  # RFC 6455, 5.3


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_frame_or_wait_or_are_refused(data: bytes, masked: bool) -> None:
    try:
        frame = read_frame(memoryview(data), masked=masked, limit=100)
    except WebSocketError as error:
        assert 1000 <= error.close_code < 5000
        return
    if frame is not None:
        assert 0 < frame.begin <= frame.end <= len(data)
        assert frame.end - frame.begin <= MAX_CONTROL_BYTES
        assert frame.opcode in (TEXT, BINARY, CLOSE, PING, PONG)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x02\x01x", id="a fragment"),
        pytest.param(b"\x80\x01x", id="the last fragment"),
        pytest.param(b"\xc2\x01x", id="an extension"),
        pytest.param(b"\x83\x01x", id="an unknown opcode"),
        pytest.param(b"\x82\x81keyyx", id="a masked frame of a server"),
    ],
)
def test_what_the_relay_does_not_speak_is_refused(data: bytes) -> None:
    with pytest.raises(WebSocketError):
        read_frame(memoryview(data), masked=False, limit=LIMIT)


def test_an_unmasked_frame_of_a_client_is_refused() -> None:
    with pytest.raises(WebSocketError):
        read_frame(memoryview(b"\x82\x01x"), masked=True, limit=LIMIT)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(frame_header(BINARY, LIMIT + 1, masked=False), id="a message"),
        pytest.param(frame_header(BINARY, 1 << 62, masked=False), id="an immense message"),
        pytest.param(frame_header(PING, 126, masked=False), id="a ping"),
    ],
)
def test_a_length_is_refused_before_its_payload_arrives(header: bytes) -> None:
    with pytest.raises(WebSocketError) as caught:
        read_frame(memoryview(header), masked=False, limit=LIMIT)
    assert caught.value.close_code == CLOSE_TOO_LONG


@given(st.integers(1000, 4999), st.text(max_size=200))
def test_a_close_frame_fits_and_shows_its_code(code: int, reason: str) -> None:
    payload = close_payload(code, reason)
    assert len(payload) <= MAX_CONTROL_BYTES
    assert close_code(payload) == code
    assert reason.startswith(payload[2:].decode())


def test_a_close_frame_may_have_no_code() -> None:
    assert close_code(b"") is None
