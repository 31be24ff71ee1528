"""Many datagrams in one message of the relay (pure), in two forms.

A *group* is what the kernel joins and splits: datagrams of one size, of which only the last may be shorter
(UDP_GRO, UDP_SEGMENT). It stays one piece on its path, because the work per datagram would limit the throughput.

    groups      each group after two numbers: the size of its datagrams, and its length
    datagrams   each datagram after its length; the form of earlier versions

A number has two bytes, big endian. Both ends agree on the form when they connect: a header of the client's request
says that it knows groups, and the same header of the answer that the server does (`FORM_HEADER`).

>>> message = b"".join(pack_groups([(32, b"a" * 96), (40, b"b" * 40)]))
>>> [(size, len(part)) for size, (part,) in runs_of_groups(message)]
[(32, 96), (40, 40)]
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from meshray.protocol.codec import WireError

#: The header of the WebSocket's handshake that names the form of the messages. A subprotocol
#: (Sec-WebSocket-Protocol) would cause a warning in the log of an earlier version's server for each connection.
FORM_HEADER, GROUPS = "Meshray-Relay-Form", "groups"
#: WireGuard's shortest message is the keepalive: a header of 16 bytes and a tag of 16 bytes.
MIN_DATAGRAM_BYTES = 32
#: The maximum of UDP over IPv4.
MAX_DATAGRAM_BYTES = 65507
#: A message is sent when it has this size: about 45 full datagrams, or four TLS records.
FULL_MESSAGE_BYTES = 64 * 1024
#: The largest accepted message: of earlier versions, one that is just not full, plus one datagram.
MAX_MESSAGE_BYTES = FULL_MESSAGE_BYTES + MAX_DATAGRAM_BYTES + 2

#: The limits of the kernel for one call: datagrams (UDP_MAX_SEGMENTS), and bytes.
_MAX_RUN, _MAX_RUN_BYTES = 64, MAX_DATAGRAM_BYTES

_LENGTH = struct.Struct("!H")
_length_of = _LENGTH.unpack_from
_GROUP = struct.Struct("!HH")

#: The size of the datagrams, and the datagrams.
Group = tuple[int, bytes]
#: What the kernel sends in one call: the size of the datagrams, and the pieces that contain them.
Run = tuple[int, Sequence[memoryview]]


class FrameError(WireError):
    """A message is malformed; its connection must be closed."""


def split(group: Group) -> list[memoryview]:
    """Return the datagrams of a group without copying them."""
    size, data = group
    view = memoryview(data)
    return [view[begin : begin + size] for begin in range(0, len(data), size)]


def join(reads: Iterable[Group]) -> list[Group]:
    """Join consecutive groups where the result is a group that the kernel can split again.

    Only some senders use segmentation. For the others each read returns one datagram, and one call for each at the
    other end would take most of the time.
    """
    joined: list[Group] = []
    parts: list[bytes] = []
    size = total = 0
    for next_size, data in reads:
        length = len(data)
        # The next one must begin where a datagram ends, and all but the last datagram have the same size.
        fits = next_size == size or length < size
        if parts and total % size == 0 and fits and total + length <= _MAX_RUN_BYTES:
            parts.append(data)
            total += length
            continue
        if parts:
            joined.append((size, _joined(parts)))
        parts, size, total = [data], next_size, length
    if parts:
        joined.append((size, _joined(parts)))
    return joined


def _joined(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pack_groups(groups: Iterable[Group]) -> list[bytes]:
    """Return the parts of one message with these groups."""
    parts: list[bytes] = []
    for size, data in groups:
        parts += (_GROUP.pack(size, len(data)), data)
    return parts


def runs_of_groups(message: bytes | memoryview) -> list[Run]:
    """Return the runs of a message with groups without copying them.

    Raises:
        FrameError: the message is malformed.
    """
    view, end = memoryview(message), len(message)
    found: list[Run] = []
    begin = 0
    while begin < end:
        if end - begin < _GROUP.size:
            raise FrameError("a relay message ends within the sizes of a group")
        size, length = _GROUP.unpack_from(view, begin)
        begin += _GROUP.size
        if not MIN_DATAGRAM_BYTES <= size <= MAX_DATAGRAM_BYTES or not size <= length <= end - begin:
            raise FrameError(
                f"a relay message has a group of {length} bytes with datagrams of {size} bytes, but only "
                f"{end - begin} bytes are left"
            )
        if 0 < length % size < MIN_DATAGRAM_BYTES:
            raise FrameError(f"the last datagram of a group in a relay message has {length % size} bytes")
        step = size * max(1, min(_MAX_RUN, _MAX_RUN_BYTES // size))
        last = begin + length
        while begin < last:
            next_begin = min(begin + step, last)
            found.append((size, (view[begin:next_begin],)))
            begin = next_begin
    return found


def pack(datagrams: Iterable[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return the parts of one message with these datagrams."""
    parts: list[bytes | memoryview] = []
    for datagram in datagrams:
        parts += (_LENGTH.pack(len(datagram)), datagram)
    return parts


def unpack(message: bytes | memoryview) -> list[memoryview]:
    """Return the datagrams of a message with datagrams without copying them.

    Raises:
        FrameError: the message is malformed.
    """
    view, end = memoryview(message), len(message)
    datagrams: list[memoryview] = []
    begin = 0
    while begin < end:
        if end - begin < _LENGTH.size:
            raise FrameError("a relay message ends within a length")
        (size,) = _length_of(view, begin)
        begin += _LENGTH.size
        if not MIN_DATAGRAM_BYTES <= size <= MAX_DATAGRAM_BYTES or size > end - begin:
            raise FrameError(f"a relay message has a datagram of {size} bytes, but only {end - begin} bytes are left")
        datagrams.append(view[begin : begin + size])
        begin += size
    return datagrams


def runs(datagrams: Iterable[memoryview]) -> Iterator[Run]:
    """Group datagrams, in their order, into runs."""
    run: list[memoryview] = []
    size, total = 0, 0
    for datagram in datagrams:
        length = len(datagram)
        fits = run and length <= size and len(run) < _MAX_RUN and total + length <= _MAX_RUN_BYTES
        if not fits:
            if run:
                yield size, run
            run, size, total = [], length, 0
        run.append(datagram)
        total += length
        if length < size:
            # A shorter datagram ends its run.
            yield size, run
            run = []
    if run:
        yield size, run


class Backlog:
    """Groups that wait for the WebSocket. Beyond the limit the oldest are dropped: the inner connections have already
    retransmitted them by the time they would arrive, and a queue delays everything behind it.

    Args:
        limit: the maximum size, bytes.

    Attributes:
        dropped: the number of datagrams that were dropped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._groups: deque[Group] = deque()
        self._size = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def size(self) -> int:
        """The number of waiting bytes."""
        return self._size

    def put(self, groups: Iterable[Group]) -> None:
        """Add groups, except those with datagrams of sizes that WireGuard never sends."""
        for size, data in groups:
            length = len(data)
            if MIN_DATAGRAM_BYTES <= size <= length <= MAX_DATAGRAM_BYTES:
                rest = length % size
                if 0 < rest < MIN_DATAGRAM_BYTES:
                    data, length = data[:-rest], length - rest  # noqa: PLW2901 - the group that is kept
                self._groups.append((size, data))
                self._size += length
        self.drop_beyond(self._limit)

    def drop_beyond(self, limit: int) -> None:
        """Drop the oldest groups until at most ``limit`` bytes wait."""
        while self._size > limit:
            size, data = self._groups.popleft()
            self._size -= len(data)
            self.dropped += -(-len(data) // size)

    def take(self) -> list[Group]:
        """Return the oldest groups, as many as one message has; none if none waits."""
        taken: list[Group] = []
        total = 0
        while self._groups and (not taken or total + len(self._groups[0][1]) <= FULL_MESSAGE_BYTES):
            group = self._groups.popleft()
            taken.append(group)
            total += len(group[1])
        self._size -= total
        return taken
