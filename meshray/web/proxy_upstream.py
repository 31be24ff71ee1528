"""The proxies' upstream side: HTTP and WebSockets to programs on the overlay.

>>> upstream = Upstream(dialer.connect)
>>> async with upstream.request(target, Call("GET", "/output", headers), watch) as answer:
...     async for chunk in answer.content.iter_any(): ...
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from meshray.linux.tcp_keepalive import keep_alive
from meshray.web.proxy_headers import Headers
from meshray.web.proxy_limits import CONNECT_S
from meshray.web.proxy_targets import ProxyError, Target

if TYPE_CHECKING:
    from meshray.web.proxy_limits import Watch

#: An unused connection is kept this long, seconds: less than any common server keeps it.
_KEEP_S = 3.0
#: The largest header line of a program, bytes.
_MAX_HEADER_BYTES = 16 * 1024
#: The largest message of a WebSocket, bytes; it is complete in memory before it is passed on.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
#: The time for the other side's half of a closing handshake, seconds.
CLOSE_S = 2.0
#: aiohttp must not add them: the program gets those of the browser.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")

#: Opens a connection to an address of the overlay. Raises OSError.
Dial = Callable[[IPv4Address, int], Awaitable[socket.socket]]


@dataclass(frozen=True)
class Call:
    """A request to a program.

    Attributes:
        path: with the query, percent-encoded as the browser wrote it.
        body: yields the body; None: there is none.
    """

    method: str
    path: str
    headers: Headers
    body: Callable[[], AsyncIterator[bytes]] | None = None


class Upstream:
    """Requests to programs on the overlay."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def connect(self, target: Target) -> socket.socket:
        """Return a connection to the program. Raises ProxyError ``refused``, ``connect_timed_out``, ``unreachable``."""
        try:
            return await self._connected(target.ip, target.port)
        except _Unconnected as failed:
            raise _not_connected(target, failed.cause) from None

    async def _connected(self, ip: IPv4Address, port: int) -> socket.socket:
        try:
            connection = await asyncio.wait_for(self._dial(ip, port), CONNECT_S)
        except (OSError, asyncio.TimeoutError) as error:
            raise _Unconnected(error) from None
        keep_alive(connection)
        return connection

    @asynccontextmanager
    async def request(self, target: Target, call: Call, watch: Watch) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the program's answer once its header has arrived.

        Args:
            watch: limits the time for the answer's header.

        Raises:
            ProxyError: as `connect`, or ``timed_out``, ``bad_answer``.
        """

        async def send() -> aiohttp.ClientResponse:
            return await self._opened().request(
                call.method,
                _url(target, call.path),
                headers=call.headers,
                data=call.body() if call.body is not None else None,
                allow_redirects=False,
                skip_auto_headers=_NOT_ADDED,
            )

        try:
            answer = await watch.run(send())
        except _Unconnected as failed:
            raise _not_connected(target, failed.cause) from None
        except aiohttp.ClientError as error:
            raise _bad_answer(target, error) from None
        try:
            yield answer
        finally:
            # Not release: the rest of the body may never end.
            answer.close()

    async def websocket(
        self, target: Target, call: Call, protocols: tuple[str, ...]
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        """Return a WebSocket to the program. Raises ProxyError as `request` does."""
        try:
            return await self._opened().ws_connect(
                _url(target, call.path),
                headers=call.headers,
                protocols=protocols,
                max_msg_size=MAX_MESSAGE_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError as error:
            raise ProxyError(
                502,
                "bad_answer",
                f"{target} answered with HTTP {error.status} and opened no WebSocket.",
            ) from None
        except _Unconnected as failed:
            raise _not_connected(target, failed.cause) from None
        except aiohttp.ClientError as error:
            raise _bad_answer(target, error) from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_OverlayConnector(self._connected),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
            )
        return self._session


class _Unconnected(Exception):  # aiohttp would turn an OSError into one of its own
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _OverlayConnector(aiohttp.BaseConnector):
    """A connector whose connections the dialer of the overlay opens."""

    def __init__(self, connect: Dial) -> None:
        super().__init__(limit=0, keepalive_timeout=_KEEP_S)
        self._connect_to = connect

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        stream = await self._connect_to(IPv4Address(req.url.host), req.url.port)
        _, protocol = await self._loop.create_connection(self._factory, sock=stream)
        return protocol


def _url(target: Target, path: str) -> URL:
    path, _, query = path.partition("?")
    return URL.build(scheme="http", host=str(target.ip), port=target.port, path=path, query_string=query, encoded=True)


def _not_connected(target: Target, error: Exception) -> ProxyError:
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return ProxyError(
            504,
            "connect_timed_out",
            f"{target} did not accept a connection within {CONNECT_S:.0f} s.",
            hint="meshray doctor",
        )
    if isinstance(error, ConnectionRefusedError):
        return ProxyError(
            502,
            "refused",
            f"Nothing accepts connections at {target}. A program that listens on 127.0.0.1 is reachable on its own "
            "node only.",
            hint=f"on {target.node}: ss -ltn 'sport = :{target.port}'",
        )
    number = error.errno if isinstance(error, OSError) else None
    because = os.strerror(number).lower() if number else "the agent does not answer"
    if number == errno.EADDRNOTAVAIL:
        because = "the overlay's interface does not exist on the coordinator's node"
    return ProxyError(502, "unreachable", f"{target} cannot be reached: {because}.", hint="meshray doctor")


def _bad_answer(target: Target, error: Exception) -> ProxyError:
    if isinstance(error, aiohttp.ServerDisconnectedError):
        because = "closed the connection without an answer"
    elif isinstance(error, aiohttp.ClientOSError):
        because = "reset the connection"
    else:
        because = "did not answer with HTTP"
    return ProxyError(502, "bad_answer", f"{target} {because}.")
