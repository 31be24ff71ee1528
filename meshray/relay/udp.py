"""The relay's UDP socket on loopback to WireGuard, which reads and writes many datagrams at a time.

sock = open_loopback()
groups, source = receive(sock)
Sender(sock).send(runs, to=source)
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Sequence

from meshray.linux.udp_queue import enlarge_buffers
from meshray.relay.frames import FULL_MESSAGE_BYTES, Group, Run

LOOPBACK = "127.0.0.1"
#: WireGuard sends in bursts, which overflow the kernel's default of 200 KiB. wireguard-go uses the same size.
BUFFER_BYTES = 7 * 1024 * 1024
#: The limits of one `receive`, so that other tasks of the process can run: groups, and bytes.
BATCH, BATCH_BYTES = 128, 4 * FULL_MESSAGE_BYTES

_UDP_SEGMENT, _UDP_GRO = 103, 104  # linux/udp.h
#: The kernel reports the size of a group's datagrams as an int.
_GRO_SIZE = struct.Struct("@i")
_GRO_SPACE = socket.CMSG_SPACE(_GRO_SIZE.size)
#: The errors of a kernel or a network card that cannot segment.
_CANNOT_SEGMENT = frozenset({errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EMSGSIZE})

Address = tuple[str, int]


def open_loopback(to: Address | None = None) -> socket.socket:
    """Open a UDP socket on a free loopback port, which reads whole groups. With ``to``, connect it to that port.

    Raises:
        OSError: no file descriptor is left.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        enlarge_buffers(sock, BUFFER_BYTES)
        # Linux 5.0. Without it each read returns one datagram.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        sock.bind((LOOPBACK, 0))
        if to is not None:
            sock.connect(to)
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket) -> tuple[list[Group], Address | None]:
    """Return the received groups within the limits, and the source of the first one (None if there are none)."""
    groups: list[Group] = []
    source: Address | None = None
    left = BATCH_BYTES
    # An error belongs to an earlier send (the port was closed); the next read succeeds.
    with contextlib.suppress(OSError):
        while left > 0 and len(groups) < BATCH:
            data, ancillary, _, address = sock.recvmsg(65535, _GRO_SPACE)
            source = source or address
            groups.append((_GRO_SIZE.unpack(ancillary[0][2])[0] if ancillary else len(data), data))
            left -= len(data)
    return groups, source


class Sender:
    """Sends many datagrams in few system calls: the kernel splits a run of equal sizes (Linux 4.18)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._segments = True

    def send(self, runs: Iterable[Run], to: Address | None = None) -> None:
        """Send datagrams to ``to``, or to the connected address. Datagrams that cannot be sent now are lost."""
        for size, parts in runs:
            is_one = len(parts) == 1 and len(parts[0]) <= size
            try:
                if is_one or not self._segments:
                    self._send_each(size, parts, to)
                else:
                    segment = struct.pack("@H", size)
                    self._sock.sendmsg(parts, [(socket.IPPROTO_UDP, _UDP_SEGMENT, segment)], 0, *_destination(to))
            except OSError as error:
                if error.errno in _CANNOT_SEGMENT and self._segments and not is_one:
                    self._segments = False
                    self._send_each(size, parts, to)

    def _send_each(self, size: int, parts: Sequence[memoryview], to: Address | None) -> None:
        for part in parts:
            for begin in range(0, len(part), size):
                with contextlib.suppress(OSError):
                    self._sock.sendmsg([part[begin : begin + size]], [], 0, *_destination(to))


def _destination(to: Address | None) -> tuple[Address, ...]:
    return () if to is None else (to,)
