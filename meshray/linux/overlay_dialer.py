"""Connections to overlay addresses from a process that is not the agent.

>>> dialer = OverlayDialer(sockets=None)                      # the overlay is in this process's own namespace
>>> stream = await dialer.connect(IPv4Address("10.99.0.2"), 8350, source=IPv4Address("10.99.0.1"))
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address
from pathlib import Path

from meshray.linux.overlay_sockets import borrow


class OverlayDialer:
    """Connects to overlay addresses.

    Args:
        sockets: where the agent passes sockets of the overlay (`meshray.linux.overlay_sockets`), if the overlay is in
            another network namespace than this process.
    """

    def __init__(self, sockets: Path | None = None) -> None:
        self._sockets = sockets

    async def connect(self, ip: IPv4Address, port: int, *, source: IPv4Address | None = None) -> socket.socket:
        """Return a connected socket that does not block; the caller limits the time.

        Args:
            source: this node's own overlay address. Without the overlay's interface the connection then fails, and does
                not leave through another network.

        Raises:
            OSError: the connection failed, or the agent passes no socket.
        """
        stream = await self._new()
        try:
            if source is not None:
                stream.bind((str(source), 0))
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(stream, (str(ip), port))
        except BaseException:
            stream.close()
            raise
        return stream

    async def _new(self) -> socket.socket:
        if self._sockets is not None:
            return await borrow(self._sockets)
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
