"""Limits for unauthenticated connections: their number, and the time that each may take.

The HTTP library limits each header and each body, but waits for ever for a header that comes byte by byte. So every
connection, once its TLS handshake is done (`meshray.coordinator.listener`), passes these limits, which watch its bytes:

    TLS done ──HEADER_S, MAX_HEADER_BYTES──► header complete ──REQUEST_S──► answered ──► next header, or closed
                                                             └─ hold(): a WebSocket, which stays

Every connection is counted from its first byte to its last: as unauthenticated until a request on it has a known
credential, then as that member's. With too many unauthenticated connections the source that has most loses one; a
member that has too many loses its own oldest one. So neither can take a place from another member.

>>> limits = ConnectionLimits()
>>> Listener(sockets, context, lambda: limits.wrap(http_server())).start()
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
#: The number of open connections without a member's credential. Each takes about 60 KB. After a restart the headers of
#: many agents are on their way at the same moment. It is less than `meshray.coordinator.handlers.MAX_REQUESTS`, so that
#: connections that never send the rest of their request leave room for others.
MAX_UNAUTHENTICATED = 448
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
        header_s, request_s, max_unauthenticated: the limits; smaller ones for tests.
    """

    def __init__(
        self, header_s: float = HEADER_S, request_s: float = REQUEST_S, max_unauthenticated: int = MAX_UNAUTHENTICATED
    ) -> None:
        self.header_s = header_s
        self.request_s = request_s
        self._connections: dict[asyncio.BaseProtocol, _LimitedConnection] = {}
        self._unauthenticated = FairLimit[_LimitedConnection](max_unauthenticated, _LimitedConnection.abort)
        self._members = FairLimit[_LimitedConnection](None, _LimitedConnection.abort, most_of_source=MAX_OF_MEMBER)
        self._sockets = FairLimit[_LimitedConnection](
            None, _LimitedConnection.abort, most_of_source=MAX_SOCKETS_OF_MEMBER
        )
        self._streams = FairLimit[_LimitedConnection](
            MAX_STREAMS, _LimitedConnection.abort, most_of_source=MAX_STREAMS_OF_SESSION
        )

    @property
    def unauthenticated(self) -> int:
        """The number of open connections without a member's credential."""
        return len(self._unauthenticated)

    def wrap(self, http: asyncio.Protocol) -> asyncio.Protocol:
        """Return the protocol to give to the event loop in place of ``http``."""
        return _LimitedConnection(self, http)

    def recognise(self, http: asyncio.BaseProtocol, node_id: str) -> None:
        """Count this connection for the member whose credential a request on it shows; empty: for none.

        A session of the page counts as a member: its key takes the place of the node's id.
        """
        connection = self._connections.get(http)
        if connection is None:
            return
        self._streams.discard(connection)
        if node_id:
            self._unauthenticated.discard(connection)
            self._members.add(connection, (node_id,))
        elif connection not in self._unauthenticated:
            self._members.discard(connection)
            self._unauthenticated.add(connection, connection.source)

    def trust(self, http: asyncio.BaseProtocol) -> None:
        """Keep this connection, whose request has a valid token, until it is answered."""
        connection = self._connections.get(http)
        if connection is not None:
            self._unauthenticated.discard(connection)

    def hold(self, http: asyncio.BaseProtocol, node_id: str, kind: str) -> None:
        """Keep this connection as the member's WebSocket of this kind, without a time limit."""
        connection = self._connections.get(http)
        if connection is not None:
            self._forget(connection)
            self._sockets.add(connection, (node_id, kind))
            connection.set_deadline(None)

    def hold_stream(self, http: asyncio.BaseProtocol, session: str) -> None:
        """Keep this connection for a stream or a WebSocket of this session, without a time limit until it is answered.

        Beyond its share, the session's oldest stream ends.
        """
        connection = self._connections.get(http)
        if connection is not None:
            self._forget(connection)
            self._streams.add(connection, (session,))
            connection.set_deadline(None)

    def expect_another(self, http: asyncio.BaseProtocol) -> None:
        """Expect another header on this connection, whose request was answered."""
        connection = self._connections.get(http)
        if connection is not None:
            self._count(connection)
            connection.expect_header()

    def expect_end(self, http: asyncio.BaseProtocol) -> None:
        """Expect the end of this connection, whose last request was answered."""
        connection = self._connections.get(http)
        if connection is not None:
            self._count(connection)
            connection.set_deadline(CLOSING_S)

    def entered(self, connection: _LimitedConnection) -> None:
        """Count a new connection."""
        self._connections[connection.http] = connection
        self._unauthenticated.add(connection, connection.source)

    def left(self, connection: _LimitedConnection) -> None:
        """Remove a connection that has ended."""
        self._forget(connection)
        self._connections.pop(connection.http, None)

    def _count(self, connection: _LimitedConnection) -> None:
        counted = (self._members, self._sockets, self._streams, self._unauthenticated)
        if not any(connection in limit for limit in counted):
            self._unauthenticated.add(connection, connection.source)

    def _forget(self, connection: _LimitedConnection) -> None:
        for limit in (self._unauthenticated, self._members, self._sockets, self._streams):
            limit.discard(connection)


class _LimitedConnection(asyncio.Protocol):
    def __init__(self, limits: ConnectionLimits, http: asyncio.Protocol) -> None:
        self.http = http
        self._limits = limits
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
        self._limits.entered(self)
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
        self._limits.left(self)
        self.http.connection_lost(exc)

    def expect_header(self) -> None:
        self._in_header, self._received, self._tail = True, 0, b""
        self.set_deadline(self._limits.header_s)

    def set_deadline(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, self.abort)

    def abort(self) -> None:
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
            self.set_deadline(self._limits.request_s)
            return True
        self._received = size
        self._tail = window[-len(_END_OF_HEADER) + 1 :]
        return True

    def _refuse(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_TOO_LARGE)
            self._transport.close()
