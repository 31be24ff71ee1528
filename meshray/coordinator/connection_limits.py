"""Limits for unauthenticated connections: their number, and the time that each may take.

The HTTP library limits each header and each body, but waits for ever for a header that comes byte by byte. So every
connection, once its TLS handshake is done (`meshray.coordinator.listener`), passes these limits, which watch its bytes:

    TLS done ──HEADER_S, MAX_HEADER_BYTES──► header complete ──REQUEST_S──► answered ──► next header, or closed
                                                             └─ hold(): a WebSocket, which stays

Every connection is counted from its first byte to its last: as unauthenticated until a request on it has a known
credential, then as that member's. With too many unauthenticated connections the source that has most loses one; a
member that has too many loses its own oldest one. So neither can take a place from another member.

>>> door = ConnectionLimits()
>>> Listener(sockets, context, lambda: door.let_in(http_server())).start()
"""

from __future__ import annotations

import asyncio

from meshray.coordinator.fair_limit import FairLimit, source_of

#: The limit from the end of the TLS handshake, or of the last answer, to the end of the header, seconds.
HEADER_S = 10.0
#: The limit from the end of the header until the answer begins, seconds.
REQUEST_S = 30.0
#: The limit from the last answer to the end of the connection, seconds.
CLOSING_S = 5.0
MAX_HEADER_BYTES = 32 * 1024
#: The number of open connections without a member's credential. Each takes a quarter of a megabyte.
MAX_STRANGERS = 256
#: The number of connections of one member for requests, and for each kind of WebSocket: one is in use, others are
#: closing.
MAX_OF_MEMBER, MAX_SOCKETS_OF_MEMBER = 128, 4
#: The number of streams and WebSockets of the page and of proxied programs: of one session, and of all.
MAX_STREAMS_OF_SESSION, MAX_STREAMS = 64, 512

_END_OF_HEADER = b"\r\n\r\n"
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Security-Policy: default-src 'none'\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class ConnectionLimits:
    """Pass connections to an HTTP protocol and watch them.

    Args:
        header_s, request_s, max_strangers: the limits; smaller ones for tests.
    """

    def __init__(
        self, header_s: float = HEADER_S, request_s: float = REQUEST_S, max_strangers: int = MAX_STRANGERS
    ) -> None:
        self.header_s = header_s
        self.request_s = request_s
        self._guests: dict[asyncio.BaseProtocol, _Guest] = {}
        self._strangers = FairLimit[_Guest](max_strangers, _Guest.throw_out)
        self._members = FairLimit[_Guest](None, _Guest.throw_out, most_of_source=MAX_OF_MEMBER)
        self._sockets = FairLimit[_Guest](None, _Guest.throw_out, most_of_source=MAX_SOCKETS_OF_MEMBER)
        self._streams = FairLimit[_Guest](MAX_STREAMS, _Guest.throw_out, most_of_source=MAX_STREAMS_OF_SESSION)

    @property
    def strangers(self) -> int:
        """The number of open connections without a member's credential."""
        return len(self._strangers)

    def let_in(self, http: asyncio.Protocol) -> asyncio.Protocol:
        """Return the protocol to give to the event loop in place of ``http``."""
        return _Guest(self, http)

    def recognise(self, http: asyncio.BaseProtocol, node_id: str) -> None:
        """Count this connection for the member whose credential a request on it shows; empty: for none.

        A session of the page counts as a member: its key takes the place of the node's id.
        """
        guest = self._guests.get(http)
        if guest is None:
            return
        self._streams.discard(guest)
        if node_id:
            self._strangers.discard(guest)
            self._members.add(guest, (node_id,))
        elif guest not in self._strangers:
            self._members.discard(guest)
            self._strangers.add(guest, guest.source)

    def trust(self, http: asyncio.BaseProtocol) -> None:
        """Keep this connection, whose request has a valid token, until it is answered."""
        guest = self._guests.get(http)
        if guest is not None:
            self._strangers.discard(guest)

    def hold(self, http: asyncio.BaseProtocol, node_id: str, kind: str) -> None:
        """Keep this connection as the member's WebSocket of this kind, without a time limit."""
        guest = self._guests.get(http)
        if guest is not None:
            self._forget(guest)
            self._sockets.add(guest, (node_id, kind))
            guest.set_deadline(None)

    def hold_stream(self, http: asyncio.BaseProtocol, session: str) -> None:
        """Keep this connection for a stream or a WebSocket of this session, without a time limit until it is answered.

        Beyond its share, the session's oldest stream ends.
        """
        guest = self._guests.get(http)
        if guest is not None:
            self._forget(guest)
            self._streams.add(guest, (session,))
            guest.set_deadline(None)

    def expect_another(self, http: asyncio.BaseProtocol) -> None:
        """Expect another header on this connection, whose request was answered."""
        guest = self._guests.get(http)
        if guest is not None:
            self._count(guest)
            guest.expect_header()

    def expect_end(self, http: asyncio.BaseProtocol) -> None:
        """Expect the end of this connection, whose last request was answered."""
        guest = self._guests.get(http)
        if guest is not None:
            self._count(guest)
            guest.set_deadline(CLOSING_S)

    def entered(self, guest: _Guest) -> None:
        """Count a new connection."""
        self._guests[guest.http] = guest
        self._strangers.add(guest, guest.source)

    def left(self, guest: _Guest) -> None:
        """Remove a connection that has ended."""
        self._forget(guest)
        self._guests.pop(guest.http, None)

    def _count(self, guest: _Guest) -> None:
        counted = (self._members, self._sockets, self._streams, self._strangers)
        if not any(guest in limit for limit in counted):
            self._strangers.add(guest, guest.source)

    def _forget(self, guest: _Guest) -> None:
        for limit in (self._strangers, self._members, self._sockets, self._streams):
            limit.discard(guest)


class _Guest(asyncio.Protocol):
    def __init__(self, door: ConnectionLimits, http: asyncio.Protocol) -> None:
        self.http = http
        self._door = door
        self.source = source_of("")
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_header = False
        self._received = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - create_server makes no other
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.source = source_of(str(peer[0]) if peer else "")
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
        self.set_deadline(self._door.header_s)

    def set_deadline(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, self.throw_out)

    def throw_out(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _header_is_fine(self, data: bytes) -> bool:
        # The end of the header may be split over two reads.
        window = self._tail + data
        end = window.find(_END_OF_HEADER)
        size = self._received + (len(data) if end < 0 else end + len(_END_OF_HEADER) - len(self._tail))
        if size > MAX_HEADER_BYTES:
            self._refuse()
            return False
        if end >= 0:
            self._in_header = False
            self.set_deadline(self._door.request_s)
            return True
        self._received = size
        self._tail = window[-len(_END_OF_HEADER) + 1 :]
        return True

    def _refuse(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_TOO_LARGE)
            self._transport.close()
