"""netlink's messages as bytes (netlink(7)), whatever family they are of: headers and attributes, read and written.

>>> [message.kind for message in messages(request(RTM_GETLINK, DUMP, bytes(16)))]
[18]
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

#: NLMSG_ERROR (an acknowledgement as well, of error 0) and NLMSG_DONE.
ERROR, DONE = 2, 3
#: NLM_F_ACK and NLM_F_DUMP.
ACK, DUMP = 0x4, 0x300
_REQUEST = 0x1

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_ERRNO = struct.Struct("=i")
#: Two bits of an attribute's kind are flags: nested, and in network byte order.
_KIND = 0x3FFF

Attributes = dict[int, bytes]


class Message(NamedTuple):
    """One message.

    Attributes:
        kind: the family's own number, `ERROR` or `DONE`.
        port: the netlink port of the socket that caused it, mostly the id of its process; 0: the kernel did.
        sequence: the number of the request that it answers.
    """

    kind: int
    port: int
    body: bytes
    sequence: int = 0

    @property
    def refused(self) -> int:
        """The errno with which the kernel refused a request; 0: it did not."""
        is_error = self.kind == ERROR and len(self.body) >= _ERRNO.size
        return -int(_ERRNO.unpack_from(self.body)[0]) if is_error else 0


def request(kind: int, flags: int, body: bytes, sequence: int = 0) -> bytes:
    """Return a message to the kernel."""
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, sequence, 0) + body


def messages(data: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram; what is cut short ends it."""
    place = 0
    while place + _HEADER.size <= len(data):
        length, kind, _, sequence, port = _HEADER.unpack_from(data, place)
        if length < _HEADER.size:
            return
        yield Message(kind, port, data[place + _HEADER.size : place + length], sequence)
        place += _aligned(length)


def ends_dump(data: bytes) -> bool:
    """Whether the answer to a request is complete with this datagram."""
    return any(message.kind in (ERROR, DONE) for message in messages(data))


def refusal(data: bytes) -> int:
    """Return the errno with which the kernel refused a request; 0: it did not."""
    return next((message.refused for message in messages(data) if message.refused), 0)


def attributes(data: bytes) -> Attributes:
    """Return the attributes that follow a message's fixed part."""
    found: Attributes = {}
    place = 0
    while place + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _KIND] = data[place + _ATTRIBUTE.size : place + length]
        place += _aligned(length)
    return found


def number(found: Attributes, kind: int, default: int) -> int:
    """Return an attribute that is a number of 32 bits in the machine's byte order."""
    raw = found.get(kind, b"")
    return int(_U32.unpack(raw)[0]) if len(raw) == _U32.size else default


def text(found: Attributes, kind: int) -> str:
    """Return an attribute that is a string, empty where it is missing."""
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def attribute(kind: int, value: int | bytes) -> bytes:
    """Return an attribute: a number of 32 bits, or bytes (for nested attributes, these)."""
    raw = _U32.pack(value) if isinstance(value, int) else value
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(raw), kind) + raw + bytes(_aligned(len(raw)) - len(raw))


def _aligned(length: int) -> int:
    return (length + 3) & ~3
