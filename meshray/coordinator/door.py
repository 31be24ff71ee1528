"""Bounds on strangers: how long and how much a connection may take before it has said what it wants.

The HTTP library bounds each header and each body, but waits for ever for a header that comes byte by
byte. So every connection, once its TLS handshake is done (`meshray.coordinator.listener`), passes this
door, which watches the bytes that go through it:

    TLS done ──HEADER_S, MAX_HEADER_BYTES──► header complete ──REQUEST_S──► answered ──► next header, or closed
                                                             └─ hold(): a WebSocket, which stays

>>> door = Door()
>>> Listener(sockets, context, lambda: door.let_in(http_server())).start()
"""

from __future__ import annotations

import asyncio

#: From the end of the TLS handshake, or of the last answer, to the end of the header, seconds.
HEADER_S = 10.0
#: From the end of the header until the answer is on its way, seconds.
REQUEST_S = 30.0
MAX_HEADER_BYTES = 32 * 1024
#: So many connections may be without a complete header; then the oldest gives way to the newest.
MAX_SILENT = 256

_END_OF_HEADER = b"\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Door:
    """Lets connections in to an HTTP protocol and watches them.

    Args:
        header_s, request_s, max_silent: the bounds; shorter ones for tests.
    """

    def __init__(self, header_s: float = HEADER_S, request_s: float = REQUEST_S, max_silent: int = MAX_SILENT) -> None:
        self.header_s = header_s
        self.request_s = request_s
        self._max_silent = max_silent
        self._guests: dict[asyncio.BaseProtocol, _Guest] = {}
        # A dict keeps the order in which they came.
        self._silent: dict[_Guest, None] = {}

    def let_in(self, http: asyncio.Protocol) -> asyncio.Protocol:
        """The protocol to give to the event loop in place of ``http``."""
        return _Guest(self, http)

    def hold(self, http: asyncio.BaseProtocol) -> None:
        """This connection is known and stays: no bound on its time any more."""
        guest = self._guests.get(http)
        if guest is not None:
            guest.set_deadline(None)

    def expect_another(self, http: asyncio.BaseProtocol) -> None:
        """This connection's request was answered; another header may come."""
        guest = self._guests.get(http)
        if guest is not None:
            guest.expect_header()

    def entered(self, guest: _Guest) -> None:
        """A new connection."""
        self._guests[guest.http] = guest

    def fell_silent(self, guest: _Guest) -> None:
        """A header is awaited from it."""
        self._silent.pop(guest, None)
        if len(self._silent) >= self._max_silent:
            next(iter(self._silent)).throw_out()
        self._silent[guest] = None

    def spoke(self, guest: _Guest) -> None:
        """Its header is complete."""
        self._silent.pop(guest, None)

    def left(self, guest: _Guest) -> None:
        """The connection is gone."""
        self._silent.pop(guest, None)
        self._guests.pop(guest.http, None)


class _Guest(asyncio.Protocol):
    def __init__(self, door: Door, http: asyncio.Protocol) -> None:
        self.http = http
        self._door = door
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_header = False
        self._received = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - create_server makes no other
        self._transport = transport
        self._door.entered(self)
        self.expect_header()
        self.http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._in_header and not self._header_is_fine(data):
            return
        self.http.data_received(data)

    def eof_received(self) -> bool | None:
        return self.http.eof_received()

    def pause_writing(self) -> None:
        self.http.pause_writing()

    def resume_writing(self) -> None:
        self.http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.set_deadline(None)
        self._door.left(self)
        self.http.connection_lost(exc)

    def expect_header(self) -> None:
        self._in_header, self._received, self._tail = True, 0, b""
        self._door.fell_silent(self)
        self.set_deadline(self._door.header_s)

    def set_deadline(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, self.throw_out)

    def throw_out(self) -> None:
        self._door.spoke(self)
        if self._transport is not None:
            self._transport.abort()

    def _header_is_fine(self, data: bytes) -> bool:
        # The end may be split over two reads.
        window = self._tail + data
        end = window.find(_END_OF_HEADER)
        size = self._received + (len(data) if end < 0 else end + len(_END_OF_HEADER) - len(self._tail))
        if size > MAX_HEADER_BYTES:
            self._refuse()
            return False
        if end >= 0:
            self._in_header = False
            self._door.spoke(self)
            self.set_deadline(self._door.request_s)
            return True
        self._received = size
        self._tail = window[-len(_END_OF_HEADER) + 1 :]
        return True

    def _refuse(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_TOO_LARGE)
            self._transport.close()
