"""Many datagrams in one WebSocket message (pure): each behind its length, two bytes, big endian.

>>> message = pack([b"a" * 32, b"b" * 40])
>>> [len(datagram) for datagram in unpack(message)]
[32, 40]
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from meshray.protocol.codec import WireError

#: WireGuard's shortest message is the keepalive: a header of 16 bytes and a tag of 16.
MIN_DATAGRAM_BYTES = 32
#: UDP over IPv4 carries no more.
MAX_DATAGRAM_BYTES = 65507
#: A message is sent once it holds this much; about 45 full datagrams. Four TLS records.
FULL_MESSAGE_BYTES = 64 * 1024
#: The largest that is accepted: one that was not full, and one more datagram.
MAX_MESSAGE_BYTES = FULL_MESSAGE_BYTES + MAX_DATAGRAM_BYTES + 2

#: The kernel takes so many datagrams at once (UDP_MAX_SEGMENTS), and so many bytes with their headers.
_MAX_RUN, _MAX_RUN_BYTES = 64, 65000

_LENGTH = struct.Struct("!H")
_length_of = _LENGTH.unpack_from


class FrameError(WireError):
    """A message that no relay sends; the connection on which it came is to be closed."""


def pack(datagrams: Iterable[bytes]) -> bytes:
    """One message of these datagrams."""
    parts: list[bytes] = []
    for datagram in datagrams:
        parts += (_LENGTH.pack(len(datagram)), datagram)
    return b"".join(parts)


def unpack(message: bytes) -> list[memoryview]:
    """The datagrams of a message, not copied.

    Raises:
        FrameError: it is no message of this kind, in whole or in part.
    """
    whole, end = memoryview(message), len(message)
    datagrams: list[memoryview] = []
    begin = 0
    while begin < end:
        if end - begin < _LENGTH.size:
            raise FrameError("a relay message ends within a length")
        (size,) = _length_of(message, begin)
        begin += _LENGTH.size
        if not MIN_DATAGRAM_BYTES <= size <= MAX_DATAGRAM_BYTES or size > end - begin:
            raise FrameError(f"a relay message holds a datagram of {size} bytes where {end - begin} are left")
        datagrams.append(whole[begin : begin + size])
        begin += size
    return datagrams


def runs(datagrams: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The datagrams in their order, grouped as the kernel's segmentation (UDP_SEGMENT) takes them in one call:
    all of one size, only the last may be shorter."""
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
            # A shorter one ends its run.
            yield run
            run = []
    if run:
        yield run


class Backlog:
    """Datagrams that wait for the WebSocket. Beyond its limit the oldest are dropped: whatever is carried inside has
    sent them again by the time they would arrive, and a queue only makes everything behind it late.

    Args:
        limit: bytes.
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
        """Bytes that wait."""
        return self._size

    def put(self, datagrams: Iterable[bytes]) -> None:
        """Adds datagrams; those that WireGuard cannot have sent are passed over."""
        for datagram in datagrams:
            if MIN_DATAGRAM_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES:
                self._datagrams.append(datagram)
                self._size += len(datagram)
        self.drop_beyond(self._limit)

    def drop_beyond(self, size: int) -> None:
        """Drops the oldest until no more than ``size`` bytes wait."""
        while self._size > size:
            self._size -= len(self._datagrams.popleft())
            self.dropped += 1

    def take(self) -> bytes:
        """The next message, of the oldest datagrams; empty where none waits."""
        taken: list[bytes] = []
        size = 0
        while self._datagrams and size < FULL_MESSAGE_BYTES:
            datagram = self._datagrams.popleft()
            taken.append(datagram)
            size += len(datagram) + _LENGTH.size
        self._size -= size - len(taken) * _LENGTH.size
        return pack(taken)
