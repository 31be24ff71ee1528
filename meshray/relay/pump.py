"""One direction of the relay: from a UDP socket into a WebSocket.

    readable ──► every datagram there is ──► backlog ──► as many per message as fit ──► send

Reading never waits for sending: while the WebSocket is slow, the backlog drops its oldest.

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

#: 20 ms at the speed at which WireGuard in user space runs; one second of a bad line of 4 Mbit/s.
BACKLOG_BYTES = 512 * 1024
#: What the kernel may hold of a TCP connection beyond what is on its way (TCP_NOTSENT_LOWAT): more would be a queue
#: in which nothing can be dropped any more.
UNSENT_BYTES = 128 * 1024
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h

#: What the pump tells of each batch, before it is sent: the datagrams and where they came from.
OnBatch = Callable[[Sequence[bytes], Address], None]


class Pump:
    """See the module's text. Owns the socket.

    Args:
        on_batch: sees what came in; it may not wait.
    """

    def __init__(self, sock: socket.socket, on_batch: OnBatch | None = None) -> None:
        self._sock = sock
        self._on_batch = on_batch
        self._wake = asyncio.Event()
        self.backlog = Backlog(BACKLOG_BYTES)

    def start(self) -> None:
        """From now on the socket is read."""
        asyncio.get_running_loop().add_reader(self._sock, self._read)

    def close(self) -> None:
        """Ends reading and closes the socket. Idempotent."""
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Sends what comes in until cancelled. Raises what ``send`` raises."""
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
        """asyncio's and aiohttp's."""


def keep_unsent_small(connection: HasSocket | None) -> None:
    """Bounds what the kernel queues for this TCP connection."""
    sock = connection.get_extra_info("socket") if connection is not None else None
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
