"""The relay's UDP socket on loopback to WireGuard, which reads and writes many datagrams at a time.

sock = open_loopback()
datagrams, source = receive(sock)
Sender(sock).send(datagrams, to=source)
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Sequence

from meshray.relay.frames import runs

LOOPBACK = "127.0.0.1"
#: WireGuard sends in bursts, which overflow the kernel's default of 200 KiB. wireguard-go uses the same size.
BUFFER_BYTES = 7 * 1024 * 1024
#: The maximum of datagrams per read, so that other tasks of the process can run.
BATCH = 128

_UDP_SEGMENT = 103  # linux/udp.h
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
#: The errors of a kernel or a network card that cannot segment.
_CANNOT_SEGMENT = frozenset({errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EMSGSIZE})

Address = tuple[str, int]


def open_loopback(to: Address | None = None) -> socket.socket:
    """Open a UDP socket on a free loopback port. With ``to``, connect it to that port.

    Raises:
        OSError: no file descriptor is left.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        enlarge_buffers(sock)
        sock.bind((LOOPBACK, 0))
        if to is not None:
            sock.connect(to)
    except BaseException:
        sock.close()
        raise
    return sock


def enlarge_buffers(sock: socket.socket) -> None:
    """Request large buffers: beyond the system's limit as root, up to it otherwise."""
    for privileged, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, privileged, BUFFER_BYTES)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)


def receive(sock: socket.socket) -> tuple[list[bytes], Address | None]:
    """Return the received datagrams, at most BATCH, and the source of the first one (None if there are none)."""
    datagrams: list[bytes] = []
    source: Address | None = None
    # An error belongs to an earlier send (the port was closed); the next read succeeds.
    with contextlib.suppress(OSError):
        first, source = sock.recvfrom(65535)
        datagrams.append(first)
        read = sock.recv
        for _ in range(BATCH - 1):
            datagrams.append(read(65535))
    return datagrams, source


class Sender:
    """Sends many datagrams in few system calls: the kernel splits a run of equal sizes (Linux 4.18)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._segments = True

    def send(self, datagrams: Sequence[memoryview], to: Address | None = None) -> None:
        """Send datagrams to ``to``, or to the connected address. Datagrams that cannot be sent now are lost."""
        for run in runs(datagrams):
            try:
                if len(run) == 1 or not self._segments:
                    self._send_each(run, to)
                else:
                    size = struct.pack("@H", len(run[0]))
                    self._sock.sendmsg(run, [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)], 0, *_destination(to))
            except OSError as error:
                if error.errno in _CANNOT_SEGMENT and self._segments and len(run) > 1:
                    self._segments = False
                    self._send_each(run, to)

    def _send_each(self, run: Sequence[memoryview], to: Address | None) -> None:
        for datagram in run:
            with contextlib.suppress(OSError):
                self._sock.sendmsg([datagram], [], 0, *_destination(to))


def _destination(to: Address | None) -> tuple[Address, ...]:
    return () if to is None else (to,)
