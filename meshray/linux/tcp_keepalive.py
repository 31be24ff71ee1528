"""Let the kernel test idle TCP connections, so that one to a machine that is gone ends.

A machine that loses its power or network says nothing, and a connection on which nothing is sent would stay for ever.
The kernel's own packets need no data and no reader: unlike a WebSocket's pings, they also work while one side does not
read.

>>> keep_alive(transport.get_extra_info("socket"))
"""

from __future__ import annotations

import socket
from typing import Protocol

#: The first test after this time without a packet, the next ones at intervals, seconds; and the number of them that
#: are not answered until the connection ends.
IDLE_S, INTERVAL_S, TESTS = 60, 15, 4


class _Sets(Protocol):
    """A socket, or asyncio's TransportSocket."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """Set an option."""


def keep_alive(connection: _Sets) -> None:
    """End this TCP connection about two minutes after the other machine has disappeared."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, TESTS)
