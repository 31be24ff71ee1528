"""The queues of UDP sockets: their size, and what waits at a port, as the kernel counts it.

>>> udp_queue(51888)
UdpQueue(received_bytes=0, dropped=0)
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import NamedTuple

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h


class UdpQueue(NamedTuple):
    """The bytes that wait for the program, and the datagrams that were dropped because too many waited."""

    received_bytes: int
    dropped: int


def enlarge_buffers(sock: socket.socket, size: int) -> None:
    """Request buffers of this many bytes: beyond the system's limit as root, up to it otherwise.

    Only datagrams that wait take memory. The kernel counts a small datagram as about 800 bytes, and one of 1,420 as
    2,300.
    """
    for privileged, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, privileged, size)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, plain, size)


def udp_queue(port: int) -> UdpQueue | None:
    """Return the queue of this port in this thread's network namespace; None if no socket is bound to it."""
    found = []
    for table in ("udp", "udp6"):
        with contextlib.suppress(OSError):  # a machine without IPv6
            queue = parse_udp_queue(Path("/proc/thread-self/net", table).read_text(), port)
            found += [queue] if queue is not None else []
    return _total(found)


def parse_udp_queue(table: str, port: int) -> UdpQueue | None:
    """Return the queue of this local port in the text of /proc/net/udp (proc(5)); None without a socket. Pure."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 13 and int(fields[1].rpartition(":")[2], 16) == port:
            found.append(UdpQueue(int(fields[4].partition(":")[2], 16), int(fields[12])))
    return _total(found)


def _total(found: list[UdpQueue]) -> UdpQueue | None:
    if not found:
        return None
    return UdpQueue(sum(queue.received_bytes for queue in found), sum(queue.dropped for queue in found))
