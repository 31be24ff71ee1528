"""The WebSocket of the relay after its handshake, as a protocol of the event loop.

    TLS ──► complete frame ──► on_message, in the same callback         send ──► TLS, in the same callback

It takes the connection over from the HTTP library, which performed the handshake, and gives it back when it is lost.
A message waits for no task and is not copied, because each turn of the event loop adds to the tunnel's round trip.

>>> websocket = RelayWebSocket(transport, on_message, masks=False)
>>> websocket.send([message])
>>> await websocket.close(1000, "")
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

from meshray.protocol.codec import WireError
from meshray.protocol.connection import CLOSE_BAD_MESSAGE
from meshray.relay.frames import MAX_MESSAGE_BYTES, FrameError
from meshray.relay.websocket_frames import (
    BINARY,
    CLOSE,
    MAX_HEADER_BYTES,
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

#: The pause without data after which a ping is sent, seconds; an answer must arrive within half of it.
HEARTBEAT_S = 10.0
#: The time for the other side's half of the closing handshake, seconds.
CLOSE_S = 2.0
#: The unsent bytes that the kernel may buffer for a TCP connection (TCP_NOTSENT_LOWAT). More would be a queue from
#: which nothing can be dropped.
UNSENT_BYTES = 128 * 1024
#: The unsent bytes in the process from which on nothing is added.
WAITING_BYTES = 64 * 1024
#: The longest frame, and as much as one read of TLS returns. Memory that no frame needed is not resident.
_BUFFER_BYTES = MAX_HEADER_BYTES + MAX_MESSAGE_BYTES + 128 * 1024
#: What one read of a TLS connection returns at most: two full messages. The coordinator's connections have buffers for
#: one record, so each message would need four turns of the event loop.
READ_BYTES = 128 * 1024
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h


class RelayWebSocket(asyncio.BufferedProtocol):
    """One connection; see the module's docstring.

    Args:
        transport: a connection whose WebSocket handshake is done.
        on_message: called with each message, which is valid only during the call. A WireError of it ends the
            connection.
        on_writable: called when more may be sent, after `writable` was False.
        is_client: whether this side opened the connection.

    Attributes:
        close_code: the code with which the other side closed the connection, or None.
        error: what the other side sent that is malformed, or an empty text.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        on_message: Callable[[memoryview], None],
        on_writable: Callable[[], None],
        *,
        is_client: bool,
    ) -> None:
        self._transport = transport
        self._on_message = on_message
        self._on_writable = on_writable
        self._is_client = is_client
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._filled = 0
        self._paused = False
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self._lost = asyncio.Event()
        self.close_code: int | None = None
        self.error = ""
        keep_unsent_small(transport)
        read_whole_messages(transport)
        transport.set_write_buffer_limits(WAITING_BYTES)
        self._heard_at = self._loop.time()
        self._timer = self._loop.call_later(HEARTBEAT_S, self._beat)
        self._previous = transport.get_protocol()
        transport.set_protocol(self)
        if transport.is_closing():
            # The connection may have been lost during the handshake: it would not be reported again.
            self._end_of_connection()

    @property
    def writable(self) -> bool:
        """Whether a message should be sent now; otherwise it would wait in memory."""
        return not self._paused and not self._closing.is_set()

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send one message, which consists of these parts. It is lost if the connection is closed."""
        self._write(BINARY, parts)

    def begin_close(self, code: int, reason: str = "") -> None:
        """Send a close frame; from then on no message passes. The first reason counts."""
        if not self._closing.is_set():
            self._write(CLOSE, [close_payload(code, reason)])
            self._closing.set()
            self._timer.cancel()
            self._timer = self._loop.call_later(CLOSE_S, self._transport.abort)

    async def wait_closing(self) -> None:
        """Wait until no message passes any more, because either side closes or because the connection is lost."""
        await self._closing.wait()

    async def close(self, code: int, reason: str = "") -> None:
        """Close with a closing handshake, or abort if the other side does not answer soon. Idempotent."""
        self.begin_close(code, reason)
        try:
            await self._lost.wait()
        finally:
            self._transport.abort()

    # ---- asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the free part of the buffer. It is never empty, because a frame that does not fit is too long."""
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Handle all complete frames."""
        self._heard_at = self._loop.time()
        end, begin = self._filled + nbytes, 0
        try:
            while begin < end and not self._lost.is_set():
                rest = self._buffer[begin:end]
                frame = read_frame(rest, masked=not self._is_client, limit=MAX_MESSAGE_BYTES)
                if frame is None:
                    break
                payload = rest[frame.begin : frame.end]
                self._handle(frame.opcode, memoryview(unmasked(payload, frame.key)) if frame.key else payload)
                begin += frame.end
        except WireError as error:
            self.error = self.error or error.message
            self.begin_close(error.close_code if isinstance(error, WebSocketError) else CLOSE_BAD_MESSAGE, self.error)
            # What follows a malformed frame has no meaning; its sender may still read the reason.
            begin = end
        if begin and begin < end:
            self._buffer[: end - begin] = bytes(self._buffer[begin:end])
        self._filled = end - begin

    def eof_received(self) -> bool:
        """Close the connection."""
        return False

    def pause_writing(self) -> None:
        """Note that the connection is slow."""
        self._paused = True

    def resume_writing(self) -> None:
        """Note that more may be sent."""
        self._paused = False
        if not self._closing.is_set():
            self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the connection back to the HTTP library, which counts it."""
        self._end_of_connection()
        self._previous.connection_lost(exc)

    # ----

    def _handle(self, opcode: int, payload: memoryview) -> None:
        if opcode == BINARY:
            if not self._closing.is_set():
                self._on_message(payload)
        elif opcode == TEXT:
            raise FrameError("only binary messages are part of the relay's protocol")
        elif opcode == PING:
            # Without this an opponent who only sends pings would fill the memory with answers.
            if self.writable:
                self._write(PONG, [payload])
        elif opcode == CLOSE:
            self.close_code = close_code(bytes(payload))
            self.begin_close(self.close_code or 1000, "")
            self._transport.close()

    def _write(self, opcode: int, parts: Sequence[bytes | memoryview]) -> None:
        if not self._transport.is_closing() and not self._closing.is_set():
            header = frame_header(opcode, sum(map(len, parts)), masked=self._is_client)
            # One piece: each piece would become a separate TLS record.
            self._transport.write(b"".join((header, *parts)))

    def _beat(self) -> None:
        silence_s = self._loop.time() - self._heard_at
        if silence_s < HEARTBEAT_S:
            self._timer = self._loop.call_later(HEARTBEAT_S - silence_s, self._beat)
            return
        self._write(PING, [])
        self._timer = self._loop.call_later(HEARTBEAT_S / 2, self._expect_answer, self._heard_at)

    def _expect_answer(self, heard_at: float) -> None:
        if self._heard_at > heard_at:
            self._beat()
        else:
            self._transport.abort()

    def _end_of_connection(self) -> None:
        self._closing.set()
        self._lost.set()
        self._timer.cancel()


def keep_unsent_small(transport: asyncio.BaseTransport) -> None:
    """Limit the unsent bytes that the kernel buffers for a TCP connection."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def read_whole_messages(transport: asyncio.BaseTransport) -> None:
    """Give a TLS connection of asyncio a buffer for whole messages."""
    protocol = getattr(transport, "_ssl_protocol", None)
    # Python 3.10 has no such buffer: it reads 256 KiB.
    if protocol is not None and hasattr(protocol, "max_size"):
        protocol.max_size = max(protocol.max_size, READ_BYTES)
