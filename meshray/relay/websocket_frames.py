"""The frames of the relay's WebSocket (RFC 6455, pure): the part of the standard that the relay needs.

The HTTP library performs the handshake. Its messages would then pass through a queue and a task, which costs more than
the frames themselves. A message is one frame here: neither this version nor an earlier one sends fragments.

A client must mask its frames so that a cache between the two does not take their payload for HTTP. Nothing between the
two sees these frames, because both ends of the TLS connection check its certificate's fingerprint. So the key is zero,
which leaves the payload as it is. Earlier versions choose random keys.

>>> data = memoryview(frame_header(BINARY, 5, masked=False) + b"hello")
>>> frame = read_frame(data, masked=False, limit=100)
>>> frame.opcode == BINARY, bytes(data[frame.begin:frame.end])
(True, b'hello')
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from meshray.protocol.connection import CLOSE_BAD_MESSAGE, CLOSE_TOO_LONG
from meshray.relay.frames import FrameError

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
#: The longest payload of a close frame, a ping or a pong.
MAX_CONTROL_BYTES = 125
#: The longest header: two bytes, a length of eight bytes, and the key.
MAX_HEADER_BYTES = 14

_SHORTEST_HEADER = 2
_FINAL, _MASKED = 0x80, 0x80
_LENGTH_16, _LENGTH_64 = 126, 127
_NO_KEY = bytes(4)
_CODE = struct.Struct("!H")


class WebSocketError(FrameError):
    """A frame is malformed; its connection must be closed.

    Attributes:
        close_code: the code for the close frame.
    """

    def __init__(self, message: str, close_code: int = CLOSE_BAD_MESSAGE) -> None:
        super().__init__(message)
        self.close_code = close_code


class Frame(NamedTuple):
    """A complete frame, and where its payload is.

    Attributes:
        key: the key of a masked payload; empty if the payload is not changed by it.
    """

    opcode: int
    begin: int
    end: int
    key: bytes


def read_frame(data: memoryview, *, masked: bool, limit: int) -> Frame | None:
    """Return the first frame of ``data``, or None if it is not complete.

    Args:
        masked: whether the sender masks its frames: a client does, a server does not.
        limit: the longest accepted payload, bytes.

    Raises:
        WebSocketError: the frame is malformed or too long. It is raised as early as the header shows it.
    """
    if len(data) < _SHORTEST_HEADER:
        return None
    opcode, second = data[0] & 0x0F, data[1]
    if data[0] & 0xF0 != _FINAL or opcode not in (TEXT, BINARY, CLOSE, PING, PONG):
        raise WebSocketError("the relay's protocol has no fragments, extensions and other frames")
    if bool(second & _MASKED) != masked:
        raise WebSocketError("only a WebSocket's client masks its frames")
    length, begin = second & 0x7F, 2
    if length >= _LENGTH_16:
        begin = 4 if length == _LENGTH_16 else 10
        if len(data) < begin:
            return None
        length = int.from_bytes(data[2:begin], "big")
    if length > (limit if opcode in (TEXT, BINARY) else MAX_CONTROL_BYTES):
        raise WebSocketError(f"a frame of {length} bytes is too long for the relay", CLOSE_TOO_LONG)
    end = begin + length + (4 if masked else 0)
    if len(data) < end:
        return None
    key = bytes(data[begin : end - length])
    return Frame(opcode, end - length, end, b"" if key == _NO_KEY else key)


def unmasked(payload: memoryview, key: bytes) -> bytes:
    """Return a masked payload's bytes.

    Python's integers do it at about half a gigabyte per second, which is enough for the nodes of an earlier version.
    """
    length = len(payload)
    repeated = (key * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(length, "big")


def frame_header(opcode: int, length: int, *, masked: bool) -> bytes:
    """Return the header of a frame whose payload follows as it is."""
    mask, key = (_MASKED, _NO_KEY) if masked else (0, b"")
    if length < _LENGTH_16:
        return bytes((_FINAL | opcode, mask | length)) + key
    if length < 1 << 16:
        return struct.pack("!BBH", _FINAL | opcode, mask | _LENGTH_16, length) + key
    return struct.pack("!BBQ", _FINAL | opcode, mask | _LENGTH_64, length) + key


def close_payload(code: int, reason: str) -> bytes:
    """Return the payload of a close frame, with the beginning of a long reason."""
    text = reason.encode()[: MAX_CONTROL_BYTES - _CODE.size]
    return _CODE.pack(code) + text.decode(errors="ignore").encode()


def close_code(payload: bytes) -> int | None:
    """Return the code in the payload of a close frame; None without one."""
    return int(_CODE.unpack_from(payload)[0]) if len(payload) >= _CODE.size else None
