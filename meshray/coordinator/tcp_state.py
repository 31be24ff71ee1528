"""What the kernel knows about an agent's TCP connection: what came from the other side, and when.

A connection whose packets no longer arrive stays open until a timeout. Its counters show earlier that nothing comes
back.

>>> TcpState.of(request.transport)
TcpState(received=4711, acknowledged=1205, received_ago_s=0.012, is_delivered=True)
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

#: Of struct tcp_info, since Linux 4.1 (linux/tcp.h): tcpi_unacked, packets; tcpi_last_data_recv, milliseconds;
#: tcpi_bytes_acked and tcpi_bytes_received.
_SIZE, _UNACKED, _LAST_RECEIVED, _BYTES = 136, 24, 52, 120


@dataclass(frozen=True)
class TcpState:
    """The state of a TCP connection.

    Attributes:
        received: bytes that came from the other side.
        acknowledged: bytes sent that it has acknowledged. A proxy acknowledges in its place.
        received_ago_s: seconds since it last sent any.
        is_delivered: everything written was acknowledged.
    """

    received: int
    acknowledged: int
    received_ago_s: float
    is_delivered: bool

    @classmethod
    def of(cls, transport: asyncio.Transport) -> TcpState | None:
        """Return the state of this connection; None if the kernel does not report it."""
        sock = transport.get_extra_info("socket")
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE) if sock is not None else b""
        except OSError:
            return None
        if len(info) < _SIZE:
            return None
        (in_flight,) = struct.unpack_from("=I", info, _UNACKED)
        (received_ms,) = struct.unpack_from("=I", info, _LAST_RECEIVED)
        acknowledged, received = struct.unpack_from("=QQ", info, _BYTES)
        is_delivered = not in_flight and not transport.get_write_buffer_size()
        return cls(received, acknowledged, received_ms / 1000, is_delivered)
