"""TCP over WebSocket: `/tcp/<node>/<port>` leads to any TCP port of a node's overlay address.

The messages are described in `meshray.protocol.tunnel`. The coordinator's own
process connects over the overlay.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import WSMsgType, web

from meshray.linux.tasks import Tasks
from meshray.protocol.tunnel import EOF, MAX_MESSAGE_BYTES, READ_BYTES
from meshray.web.access import Level
from meshray.web.frame import Site
from meshray.web.proxy import failed, is_websocket
from meshray.web.proxy_limits import ProxyLimits
from meshray.web.proxy_targets import ProxyError, tunnel_target
from meshray.web.proxy_upstream import CLOSE_S, Upstream

#: Close codes of WebSockets.
_DONE, _BROKEN = 1000, 1011


class Tunnel:
    """The tunnels of all sessions."""

    def __init__(self, site: Site, upstream: Upstream, limits: ProxyLimits) -> None:
        self._site = site
        self._upstream = upstream
        self._limits = limits

    def add(self) -> None:
        """Add the route to the site."""
        self._site.add(
            "GET",
            "/tcp/{node}/{port}",
            self.serve,
            read=Level.USE,
            write=Level.USE,
            needs_cookie=True,
            is_program=True,
        )

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Carry one TCP connection."""
        session = self._site.access.require(request, Level.USE)
        try:
            if not is_websocket(request):
                raise ProxyError(
                    426,
                    "not_a_websocket",
                    "This address is for meshray forward, which opens WebSockets.",
                    hint="meshray forward --help",
                )
            target = tunnel_target(self._site.service.map, request.match_info["node"], request.match_info["port"])
            with self._limits.taking(session.key):
                self._site.access.hold(request)
                stream = await self._upstream.connect(target)
                reader, writer = await asyncio.open_connection(sock=stream, limit=READ_BYTES)
                return await _Connection(reader, writer).run(request)
        except ProxyError as error:
            return failed(self._site, request, error)


class _Connection:
    """One tunnel: both ends, and which directions are open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._client = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, compress=False, timeout=CLOSE_S)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._directions = 2

    async def run(self, request: web.Request) -> web.StreamResponse:
        """Carry both directions until both have ended, or one end is gone."""
        work = Tasks()
        try:
            await self._client.prepare(request)
            work.start(self._from_client(), "tunnel to program")
            work.start(self._to_client(), "tunnel to client")
            code = await self._ended
        finally:
            await work.close()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        await self._client.close(code=code)
        return self._client

    async def _from_client(self) -> None:
        try:
            while True:
                message = await self._client.receive()
                if message.type is WSMsgType.BINARY:
                    self._writer.write(message.data)
                    await self._writer.drain()
                elif message.type is WSMsgType.TEXT and message.data == EOF:
                    self._writer.write_eof()
                    self._end_direction()
                else:
                    break
        except OSError:
            pass
        finally:
            self._end(_BROKEN)

    async def _to_client(self) -> None:
        try:
            while data := await self._reader.read(READ_BYTES):
                await self._client.send_bytes(data)
            await self._client.send_str(EOF)
            self._end_direction()
        except OSError:
            self._end(_BROKEN)

    def _end_direction(self) -> None:
        self._directions -= 1
        if not self._directions:
            self._end(_DONE)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)
