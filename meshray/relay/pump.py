"""One direction of the relay: from a UDP socket into a WebSocket.

    readable ──► all waiting datagrams ──► backlog ──► as many per message as fit ──► send

Reading never waits for sending: while the WebSocket is slow, the backlog drops its oldest datagrams.

>>> pump = Pump(sock)
>>> pump.start()
>>> await pump.run(websocket.send_bytes)       # until cancelled
>>> pump.close()
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from meshray.relay.frames import Backlog
from meshray.relay.udp import Address, receive

#: 20 ms at the throughput of user-space WireGuard; one second of a slow connection of 4 Mbit/s.
BACKLOG_BYTES = 512 * 1024
#: The unsent bytes that the kernel may buffer for a TCP connection (TCP_NOTSENT_LOWAT). More would be a queue from
#: which nothing can be dropped.
UNSENT_BYTES = 128 * 1024
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h

#: Called with each batch before it is sent: the datagrams and their source.
OnBatch = Callable[[Sequence[bytes], Address], None]


class Pump:
    """One direction of the relay; see the module's docstring. The pump owns the socket.

    Args:
        on_batch: called with each batch of datagrams; it must not block.
    """

    def __init__(self, sock: socket.socket, on_batch: OnBatch | None = None) -> None:
        self._sock = sock
        self._on_batch = on_batch
        self._wake = asyncio.Event()
        self.backlog = Backlog(BACKLOG_BYTES)

    def start(self) -> None:
        """Start reading the socket."""
        asyncio.get_running_loop().add_reader(self._sock, self._read)

    def close(self) -> None:
        """Stop reading and close the socket. Idempotent."""
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send the received datagrams until cancelled. Raises the exceptions of ``send``."""
        while True:
            while message := self.backlog.take():
                await send(message)
            self._wake.clear()
            await self._wake.wait()

    def _read(self) -> None:
        datagrams, source = receive(self._sock)
        if source is None:
            return
        if self._on_batch is not None:
            self._on_batch(datagrams, source)
        self.backlog.put(datagrams)
        self._wake.set()


class HasSocket(Protocol):
    """A transport, or a WebSocket on one."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As in asyncio and aiohttp."""


def keep_unsent_small(connection: HasSocket | None) -> None:
    """Limit the unsent bytes that the kernel buffers for a TCP connection."""
    sock = connection.get_extra_info("socket") if connection is not None else None
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
