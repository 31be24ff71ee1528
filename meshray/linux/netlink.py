"""Messages of any netlink family (netlink(7)) as bytes, their headers and attributes, and a socket for them.

>>> [message.kind for message in messages(request(RTM_GETLINK, DUMP, bytes(16)))]
[18]
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

#: NLMSG_ERROR (also an acknowledgement, with error 0) and NLMSG_DONE.
ERROR, DONE = 2, 3
#: NLM_F_ACK and NLM_F_DUMP.
ACK, DUMP = 0x4, 0x300
_REQUEST = 0x1

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_ERRNO = struct.Struct("=i")
#: The timeout of a request, seconds. The kernel usually answers within a millisecond.
TIMEOUT_S = 5.0
#: The kernel's datagrams have at most 32 KiB, unless a single message is larger.
_ANSWER_BYTES = 1 << 17
#: Two bits of an attribute's kind are flags: nested, and in network byte order.
_KIND = 0x3FFF

Attributes = dict[int, bytes]


class Message(NamedTuple):
    """One message.

    Attributes:
        kind: the family's own number, `ERROR` or `DONE`.
        port: the netlink port of the socket that caused the message, usually its process id; 0 for the kernel.
        sequence: the number of the answered request.
    """

    kind: int
    port: int
    body: bytes
    sequence: int = 0

    @property
    def refused(self) -> int:
        """The errno of a refused request, 0 if it was not refused."""
        is_error = self.kind == ERROR and len(self.body) >= _ERRNO.size
        return -int(_ERRNO.unpack_from(self.body)[0]) if is_error else 0


def request(kind: int, flags: int, body: bytes, sequence: int = 0) -> bytes:
    """Return a message to the kernel."""
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, sequence, 0) + body


def messages(data: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram, until a truncated one."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield Message(kind, port, data[offset + _HEADER.size : offset + length], sequence)
        offset += _aligned(length)


def read_answer(data: bytes, sequence: int) -> tuple[list[bytes], bool]:
    """Return the bodies of a request's answer in one datagram, and whether the answer ends with it (pure).

    Raises:
        OSError: the kernel refused the request.
    """
    bodies: list[bytes] = []
    for message in messages(data):
        if message.sequence != sequence:  # the answer to an earlier request, which timed out
            continue
        if message.refused:
            raise OSError(message.refused, os.strerror(message.refused))
        if message.kind in (ERROR, DONE):
            return bodies, True
        bodies.append(message.body)
    return bodies, False


def attributes(data: bytes) -> Attributes:
    """Return the attributes that follow a message's fixed part."""
    found: Attributes = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _KIND] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def number(found: Attributes, kind: int, default: int) -> int:
    """Return an attribute that is a number of 32 bits in the machine's byte order."""
    raw = found.get(kind, b"")
    return int(_U32.unpack(raw)[0]) if len(raw) == _U32.size else default


def text(found: Attributes, kind: int) -> str:
    """Return an attribute that is a string; empty if it is missing."""
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def attribute(kind: int, value: int | bytes) -> bytes:
    """Return an attribute: a number of 32 bits, or bytes (for nested attributes, these)."""
    raw = _U32.pack(value) if isinstance(value, int) else value
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(raw), kind) + raw + bytes(_aligned(len(raw)) - len(raw))


_Socket = TypeVar("_Socket", bound="NetlinkSocket")


class NetlinkSocket:
    """A socket of one netlink family for one request at a time. Each blocks and raises OSError with the kernel's errno.

    >>> with NetlinkSocket(socket.NETLINK_ROUTE) as kernel:
    ...     [text(attributes(body[LINK.size :]), IFLA_IFNAME) for body in kernel.dump(RTM_GETLINK, bytes(LINK.size))]
    ['lo', 'eth0']
    """

    def __init__(self, family: int, timeout_s: float = TIMEOUT_S) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(timeout_s)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self: _Socket) -> _Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Yield the bodies of all objects of a kind (RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE).

        All of them must be read before the next request.
        """
        return self._answers(kind, DUMP, body)

    def get(self, kind: int, body: bytes) -> bytes:
        """Return the body of the one object that the request names."""
        (answer,) = self._answers(kind, ACK, body)
        return answer

    def change(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Create, change or remove an object.

        Args:
            flags: CREATE, EXCLUSIVE, REPLACE of rtnetlink.
        """
        for _ in self._answers(kind, ACK | flags, body):
            pass

    def _answers(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(request(kind, flags, body, self._sequence))
        is_last = False
        while not is_last:
            bodies, is_last = read_answer(self._socket.recv(_ANSWER_BYTES), self._sequence)
            yield from bodies


def _aligned(length: int) -> int:
    return (length + 3) & ~3
