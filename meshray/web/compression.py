"""Answers with a large part in common, which is compressed once (gzip, RFC 1952).

    head of one session (stored) | shared part (deflated once) | tail of one session (stored)

What belongs to a session is not compressed: the length of an answer then reveals nothing about its secrets.

>>> gzipped(b"<html>…", SharedText("<table>…</table>"), b"</html>")
b'\\x1f\\x8b…'
"""

from __future__ import annotations

import functools
import struct
import zlib

#: Of a gzip member: deflate, no flags, no time, the fastest level, an unknown system.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
_RAW = -zlib.MAX_WBITS
#: Half of the time of the default level, for a tenth more bytes.
_LEVEL = 1


class SharedText:
    """A text that is part of several answers."""

    def __init__(self, text: str) -> None:
        self.plain = text.encode()

    @functools.cached_property
    def deflated(self) -> bytes:
        """The text as blocks of a deflate stream that refer to nothing before them."""
        return _deflated(self.plain, _LEVEL, zlib.Z_FULL_FLUSH)


def gzipped(head: bytes, shared: SharedText, tail: bytes) -> bytes:
    """Return the concatenation of the three parts, compressed."""
    crc = zlib.crc32(tail, zlib.crc32(shared.plain, zlib.crc32(head)))
    size = len(head) + len(shared.plain) + len(tail)
    return b"".join(
        (
            _HEADER,
            _deflated(head, 0, zlib.Z_FULL_FLUSH),
            shared.deflated,
            _deflated(tail, 0, zlib.Z_FINISH),
            struct.pack("<II", crc, size & 0xFFFFFFFF),
        )
    )


def _deflated(data: bytes, level: int, flush: int) -> bytes:
    deflate = zlib.compressobj(level, zlib.DEFLATED, _RAW)
    return deflate.compress(data) + deflate.flush(flush)
