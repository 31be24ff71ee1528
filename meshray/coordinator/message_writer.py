"""Write an agent's messages to its connection, as fast as the agent reads.

A message is written as soon as it is there, without a task: a change goes to thousands of agents at the same moment.
Only while an agent reads slowly does a task wait for it. A long message is written in fragments, each when most of the
last one has been sent: OpenSSL's buffers of a connection keep the size of the largest write.

>>> writer = MessageWriter(outbox, request.transport)
>>> await writer.run(first_map_sent)       # until the outbox is closed
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable

from meshray.coordinator.publisher import Outbox
from meshray.coordinator.tcp_state import TcpState

#: Within this time the agent must have received part of what is sent to it; otherwise it does not read.
SEND_S = 20.0
#: The longest fragment of a message, bytes; and the number of bytes that may wait to be sent.
FRAGMENT_BYTES = 64 * 1024
#: The pauses until a full connection is asked again whether it has sent something, seconds; they double.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.16
#: RFC 6455, section 5.2: the opcodes, the flag of the last fragment, and the lengths that have 2 and 8 bytes.
_TEXT, _CONTINUATION, _PING, _FINAL, _LENGTH_2, _LENGTH_8 = 0x1, 0x0, 0x9, 0x80, 126, 127
#: The offset of tcpi_bytes_acked in struct tcp_info, since Linux 4.1 (linux/tcp.h).
_TCP_INFO_BYTES, _BYTES_ACKED = 128, slice(120, 128)


class MessageWriter:
    """The frames of one agent's WebSocket without compression.

    aiohttp writes pings and the closing frame, which may come between two frames.
    """

    def __init__(self, outbox: Outbox, transport: asyncio.Transport) -> None:
        self._outbox = outbox
        self._transport = transport
        self._fragments: deque[bytes] = deque()
        self._has_sent_map = False
        self._wake = asyncio.Event()
        transport.set_write_buffer_limits(FRAGMENT_BYTES)
        outbox.on_ready = self._write
        outbox.ping = self._ping
        outbox.tcp_state = lambda: TcpState.of(transport)

    async def run(self, first_map_sent: Callable[[], Awaitable[None]]) -> None:
        """Write until the outbox is closed.

        Args:
            first_map_sent: called once the first message, which is of the map, has been written.

        Raises:
            asyncio.TimeoutError: the agent does not read.
        """
        self._write()
        is_first = True
        while not self._outbox.close_code:
            await self._wake.wait()
            self._wake.clear()
            if self._is_full:
                await self._until_sent()
                self._write()
            if is_first and self._has_sent_map:
                is_first = False
                await first_map_sent()

    @property
    def _is_full(self) -> bool:
        return not self._transport.is_closing() and self._transport.get_write_buffer_size() >= FRAGMENT_BYTES

    def _write(self) -> None:
        """Write what there is, until the buffer is full."""
        while not self._transport.is_closing() and not self._is_full:
            if not self._fragments:
                if not self._has_sent_map and self._outbox.has_sent_map:
                    self._has_sent_map = True
                    self._wake.set()
                if (message := self._outbox.take()) is None:
                    break
                self._fragments.extend(fragments(message))
            self._transport.write(self._fragments.popleft())
        if self._is_full or self._outbox.close_code:
            self._wake.set()

    def _ping(self) -> None:
        # A full connection shows by its acknowledgements whether the other side takes anything.
        if not self._transport.is_closing() and not self._is_full:
            self._transport.write(_frame(_PING | _FINAL, b""))

    async def _until_sent(self) -> None:
        loop, pause_s = asyncio.get_running_loop(), _FIRST_PAUSE_S
        received, ends = received_bytes(self._transport), loop.time() + SEND_S
        while self._is_full and not self._outbox.close_code:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if loop.time() >= ends:
                before, received = received, received_bytes(self._transport)
                if received == before:
                    raise asyncio.TimeoutError
                ends = loop.time() + SEND_S


def fragments(message: bytes) -> list[bytes]:
    """Return the frames of a text message from a server, which masks nothing (RFC 6455, section 5.4)."""
    starts = range(0, len(message) or 1, FRAGMENT_BYTES)
    return [
        _frame(
            (_CONTINUATION if start else _TEXT) | (_FINAL if start == starts[-1] else 0),
            message[start : start + FRAGMENT_BYTES],
        )
        for start in starts
    ]


def _frame(first_byte: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < _LENGTH_2:
        return bytes((first_byte, size)) + payload
    if size < 1 << 16:
        return bytes((first_byte, _LENGTH_2)) + size.to_bytes(2, "big") + payload
    return bytes((first_byte, _LENGTH_8)) + size.to_bytes(8, "big") + payload


def received_bytes(transport: asyncio.BaseTransport | None) -> int:
    """Return the number of bytes that the other machine has acknowledged on this TCP connection; 0 if not known."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES) if sock is not None else b""
    except OSError:
        return 0
    return int.from_bytes(info[_BYTES_ACKED], sys.byteorder)
