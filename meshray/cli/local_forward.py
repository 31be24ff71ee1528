"""A port of this machine's loopback that leads to a port of a node.

>>> await serve(local, dial, on_ready)     # until cancelled
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from meshray.errors import MeshrayError
from meshray.linux.tasks import Tasks
from meshray.protocol.tunnel import READ_BYTES

_LOOPBACK = "127.0.0.1"
#: The number of connections at once; further ones wait.
_MAX_CONNECTIONS = 256
_CONNECT_S = 5.0


class Remote(Protocol):
    """A connection to the node's port."""

    def read(self) -> AsyncIterator[bytes]:
        """Yield what arrives until the other side ends its direction."""

    async def write(self, data: bytes) -> None:
        """Send bytes."""

    async def write_eof(self) -> None:
        """End this direction."""

    async def close(self) -> None:
        """Close both directions."""


#: Opens a connection to the node's port. Raises MeshrayError.
Dial = Callable[[], Awaitable[Remote]]


class DirectConnection:
    """A connection over the overlay."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, ip: IPv4Address, port: int, name: str, sockets: Path | None) -> DirectConnection:
        """Connect.

        Args:
            name: the node's, for messages.
            sockets: as of `meshray.linux.overlay_dialer.OverlayDialer`.

        Raises:
            MeshrayError: ``connection_refused``, ``connection_timed_out``, ``connection_failed``.
        """
        from meshray.linux.overlay_dialer import OverlayDialer

        where = f"port {port} of {name} ({ip})"
        try:
            stream = await asyncio.wait_for(OverlayDialer(sockets).connect(ip, port), _CONNECT_S)
        except ConnectionRefusedError:
            raise MeshrayError(
                "connection_refused", f"{where} refuses connections", hint=f"on {name}: ss -ltn 'sport = :{port}'"
            ) from None
        except (asyncio.TimeoutError, TimeoutError):
            raise MeshrayError(
                "connection_timed_out", f"{where} did not answer within {_CONNECT_S:.0f} s", hint="meshray doctor"
            ) from None
        except OSError as error:
            because = os.strerror(error.errno).lower() if error.errno else str(error)
            raise MeshrayError("connection_failed", f"{where}: {because}", hint="meshray status") from None
        return cls(*await asyncio.open_connection(sock=stream, limit=READ_BYTES))

    async def read(self) -> AsyncIterator[bytes]:
        """See `Remote.read`."""
        while data := await self._reader.read(READ_BYTES):
            yield data

    async def write(self, data: bytes) -> None:
        """See `Remote.write`."""
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        """See `Remote.write_eof`."""
        self._writer.write_eof()

    async def close(self) -> None:
        """See `Remote.close`."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def bind(port: int) -> socket.socket:
    """Return a listening socket on the loopback; port 0: any.

    Raises:
        MeshrayError: ``port_in_use``, ``port_not_allowed``.
    """
    try:
        return socket.create_server((_LOOPBACK, port), backlog=_MAX_CONNECTIONS)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise MeshrayError(
                "port_in_use",
                f"port {port} of 127.0.0.1 is in use by another program",
                hint=f"who it is: ss -ltnp 'sport = :{port}'; or choose another one: PORT:LOCAL, with LOCAL 0 for any",
            ) from None
        if error.errno == errno.EACCES:
            raise MeshrayError(
                "port_not_allowed",
                f"only root may listen on port {port}",
                hint="choose another one: PORT:LOCAL, for example 22:2222",
            ) from None
        raise


async def serve(listening: socket.socket, dial: Dial, on_error: Callable[[MeshrayError], None]) -> None:
    """Carry connections until cancelled.

    Args:
        on_error: called if the node's port does not accept a connection.
    """
    slots, work = asyncio.Semaphore(_MAX_CONNECTIONS), Tasks()
    loop = asyncio.get_running_loop()
    listening.setblocking(False)

    async def carry(near: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=near, limit=READ_BYTES)
            with contextlib.closing(writer):
                await join(reader, writer, await dial())
        except MeshrayError as error:
            on_error(error)
        except OSError:
            pass
        finally:
            slots.release()

    try:
        while True:
            await slots.acquire()
            near, _ = await loop.sock_accept(listening)
            work.start(carry(near), "forwarded connection")
    finally:
        await work.close()


async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, remote: Remote) -> None:
    """Copy both directions until both have ended, or one side is gone."""

    async def outward() -> None:
        while data := await reader.read(READ_BYTES):
            await remote.write(data)
        await remote.write_eof()

    async def inward() -> None:
        async for data in remote.read():
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    loop = asyncio.get_running_loop()
    both = {loop.create_task(outward()), loop.create_task(inward())}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in both:
            task.cancel()
        try:
            await asyncio.gather(*both, return_exceptions=True)
        finally:  # Also if it is cancelled a second time.
            with contextlib.suppress(OSError):
                await remote.close()
