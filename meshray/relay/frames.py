"""Many datagrams in one WebSocket message (pure): each after its length, two bytes, big endian.

>>> message = pack([b"a" * 32, b"b" * 40])
>>> [len(datagram) for datagram in unpack(message)]
[32, 40]
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from meshray.protocol.codec import WireError

#: WireGuard's shortest message is the keepalive: a header of 16 bytes and a tag of 16 bytes.
MIN_DATAGRAM_BYTES = 32
#: The maximum of UDP over IPv4.
MAX_DATAGRAM_BYTES = 65507
#: A message is sent when it has this size: about 45 full datagrams, or four TLS records.
FULL_MESSAGE_BYTES = 64 * 1024
#: The largest accepted message: one that is just not full, plus one datagram.
MAX_MESSAGE_BYTES = FULL_MESSAGE_BYTES + MAX_DATAGRAM_BYTES + 2

#: The kernel's limits for one call: datagrams (UDP_MAX_SEGMENTS), and bytes with headers.
_MAX_RUN, _MAX_RUN_BYTES = 64, 65000

_LENGTH = struct.Struct("!H")
_length_of = _LENGTH.unpack_from


class FrameError(WireError):
    """A message is malformed; its connection must be closed."""


def pack(datagrams: Iterable[bytes]) -> bytes:
    """Return one message with these datagrams."""
    parts: list[bytes] = []
    for datagram in datagrams:
        parts += (_LENGTH.pack(len(datagram)), datagram)
    return b"".join(parts)


def unpack(message: bytes) -> list[memoryview]:
    """Return the datagrams of a message without copying them.

    Raises:
        FrameError: the message is malformed.
    """
    view, end = memoryview(message), len(message)
    datagrams: list[memoryview] = []
    begin = 0
    while begin < end:
        if end - begin < _LENGTH.size:
            raise FrameError("a relay message ends within a length")
        (size,) = _length_of(message, begin)
        begin += _LENGTH.size
        if not MIN_DATAGRAM_BYTES <= size <= MAX_DATAGRAM_BYTES or size > end - begin:
            raise FrameError(f"a relay message has a datagram of {size} bytes, but only {end - begin} bytes are left")
        datagrams.append(view[begin : begin + size])
        begin += size
    return datagrams


def runs(datagrams: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Group datagrams, in their order, for the kernel's segmentation (UDP_SEGMENT): all datagrams of a group have one
    size, and only the last may be shorter."""
    run: list[memoryview] = []
    size, total = 0, 0
    for datagram in datagrams:
        length = len(datagram)
        fits = run and length <= size and len(run) < _MAX_RUN and total + length <= _MAX_RUN_BYTES
        if not fits:
            if run:
                yield run
            run, size, total = [], length, 0
        run.append(datagram)
        total += length
        if length < size:
            # A shorter datagram ends its group.
            yield run
            run = []
    if run:
        yield run


class Backlog:
    """Datagrams that wait for the WebSocket. Beyond the limit the oldest are dropped: the inner connections have
    already retransmitted them by the time they would arrive, and a queue delays everything behind it.

    Args:
        limit: the maximum size, bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._datagrams: deque[bytes] = deque()
        self._size = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._datagrams)

    @property
    def size(self) -> int:
        """The number of waiting bytes."""
        return self._size

    def put(self, datagrams: Iterable[bytes]) -> None:
        """Add datagrams, except those of sizes that WireGuard never sends."""
        for datagram in datagrams:
            if MIN_DATAGRAM_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES:
                self._datagrams.append(datagram)
                self._size += len(datagram)
        self.drop_beyond(self._limit)

    def drop_beyond(self, size: int) -> None:
        """Drop the oldest datagrams until at most ``size`` bytes wait."""
        while self._size > size:
            self._size -= len(self._datagrams.popleft())
            self.dropped += 1

    def take(self) -> bytes:
        """Return the next message with the oldest datagrams, or an empty one if none waits."""
        taken: list[bytes] = []
        size = 0
        while self._datagrams and size < FULL_MESSAGE_BYTES:
            datagram = self._datagrams.popleft()
            taken.append(datagram)
            size += len(datagram) + _LENGTH.size
        self._size -= size - len(taken) * _LENGTH.size
        return pack(taken)
