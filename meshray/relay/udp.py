"""The relay's end towards WireGuard: a UDP socket on loopback, read and written many datagrams at a time.

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
#: WireGuard sends in bursts; with the kernel's usual 200 KiB much of one is lost (wireguard-go takes the same).
BUFFER_BYTES = 7 * 1024 * 1024
#: Datagrams read in one go; then everything else in the process has its turn.
BATCH = 128

_UDP_SEGMENT = 103  # linux/udp.h
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
#: What a kernel or a network card says that cannot segment.
_CANNOT_SEGMENT = frozenset({errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EMSGSIZE})

Address = tuple[str, int]


def open_loopback(to: Address | None = None) -> socket.socket:
    """A UDP socket on a free loopback port; with ``to`` it speaks to that port and hears nobody else.

    Raises:
        OSError: no descriptor is left.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        enlarge(sock)
        sock.bind((LOOPBACK, 0))
        if to is not None:
            sock.connect(to)
    except BaseException:
        sock.close()
        raise
    return sock


def enlarge(sock: socket.socket) -> None:
    """Asks for large buffers: beyond the system's limit as root, up to it otherwise."""
    for force, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, BUFFER_BYTES)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)


def receive(sock: socket.socket) -> tuple[list[bytes], Address | None]:
    """What has arrived, at most BATCH datagrams, and where the first one came from (None: nothing has)."""
    datagrams: list[bytes] = []
    source: Address | None = None
    # Errors are of what was sent before (nobody listens there just now); the next read is without them.
    with contextlib.suppress(OSError):
        first, source = sock.recvfrom(65535)
        datagrams.append(first)
        read = sock.recv
        for _ in range(BATCH - 1):
            datagrams.append(read(65535))
    return datagrams, source


class Sender:
    """Sends many datagrams in few system calls: the kernel cuts a run of equal ones apart (Linux 4.18)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._segments = True

    def send(self, datagrams: Sequence[memoryview], to: Address | None = None) -> None:
        """As UDP does: what cannot be sent now is lost. ``to`` None: where the socket is connected."""
        for run in runs(datagrams):
            try:
                if len(run) == 1 or not self._segments:
                    self._one_by_one(run, to)
                else:
                    size = struct.pack("@H", len(run[0]))
                    self._sock.sendmsg(run, [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)], 0, *_present(to))
            except OSError as error:
                if error.errno in _CANNOT_SEGMENT and self._segments and len(run) > 1:
                    self._segments = False
                    self._one_by_one(run, to)

    def _one_by_one(self, run: Sequence[memoryview], to: Address | None) -> None:
        for datagram in run:
            with contextlib.suppress(OSError):
                self._sock.sendmsg([datagram], [], 0, *_present(to))


def _present(to: Address | None) -> tuple[Address, ...]:
    return () if to is None else (to,)
