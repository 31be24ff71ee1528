"""The relay's server on the hub: one WebSocket per node, whose datagrams go to the hub's own WireGuard.

    app.router.add_get("/v1/relay", …)  ──►  Relay(port).serve(request, node_id, is_member)

A node has one connection: the newest replaces an older one. A malformed message ends its connection, and `drop` ends a
node's connection when the node is removed from the mesh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import WSMsgType, web

from meshray.linux.tasks import Tasks
from meshray.protocol.codec import WireError
from meshray.protocol.connection import CLOSE_BAD_MESSAGE, CLOSE_ENDING, CLOSE_NOT_ACCEPTED, CLOSE_REPLACED
from meshray.relay.frames import MAX_MESSAGE_BYTES, FrameError, unpack
from meshray.relay.pump import Pump, keep_unsent_small
from meshray.relay.udp import LOOPBACK, Sender, open_loopback

#: The interval of pings; an answer must arrive within half of it.
HEARTBEAT_S = 10.0
#: The time for the other side's half of the closing handshake.
CLOSE_S = 2.0

_REMOVED = "this node was removed from the mesh"

_log = logging.getLogger(__name__)


class Relay:
    """Connects nodes to one WireGuard port of this machine.

    Args:
        port: the UDP port on loopback; the relay sends to no other.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: dict[str, _Connection] = {}

    @property
    def count(self) -> int:
        """The number of connected nodes."""
        return len(self._connections)

    async def serve(self, request: web.Request, node_id: str, is_member: Callable[[], bool]) -> web.WebSocketResponse:
        """Carry one node's datagrams until either side closes the connection.

        Args:
            is_member: checked once the connection is open; later removals call `drop`.
        """
        websocket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE_BYTES, compress=False, timeout=CLOSE_S
        )
        await websocket.prepare(request)
        keep_unsent_small(request.transport)
        connection = _Connection(websocket, self._port)
        older = self._connections.get(node_id)
        if older is not None:
            older.end(CLOSE_REPLACED, "another connection of this node took over")
        self._connections[node_id] = connection
        _log.info("node %s uses the relay", node_id)
        if not is_member():
            connection.end(CLOSE_NOT_ACCEPTED, _REMOVED)
        try:
            await connection.run()
        finally:
            if self._connections.get(node_id) is connection:
                del self._connections[node_id]
        _log.info("node %s left the relay%s", node_id, f": {connection.reason}" if connection.reason else "")
        await connection.close(request.transport)
        return websocket

    def drop(self, node_id: str) -> None:
        """Close the connection of a node that was removed from the mesh, if it has one."""
        connection = self._connections.get(node_id)
        if connection is not None:
            connection.end(CLOSE_NOT_ACCEPTED, _REMOVED)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.end(CLOSE_ENDING, "the coordinator is stopping")


class _Connection:
    def __init__(self, websocket: web.WebSocketResponse, port: int) -> None:
        sock = open_loopback((LOOPBACK, port))
        self._websocket = websocket
        self._pump = Pump(sock)
        self._sender = Sender(sock)
        self._ended = asyncio.Event()
        self._code = 0
        self.reason = ""

    def end(self, code: int, reason: str) -> None:
        """End the connection. The first reason counts."""
        if not self._code:
            self._code, self.reason = code, reason
        self._ended.set()

    async def run(self) -> None:
        """Carry both directions until `end`."""
        work = Tasks()
        self._pump.start()
        work.start(self._out(), "relay out")
        work.start(self._in(), "relay in")
        try:
            await self._ended.wait()
        finally:
            await work.close()
            self._pump.close()

    async def close(self, transport: asyncio.BaseTransport | None) -> None:
        """Close with a closing handshake, or abort if the other side does not answer soon."""
        try:
            await asyncio.wait_for(self._websocket.close(code=self._code, message=self.reason.encode()[:120]), CLOSE_S)
        except (asyncio.TimeoutError, ConnectionError):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()

    async def _out(self) -> None:
        try:
            await self._pump.run(self._websocket.send_bytes)
        except ConnectionError:
            self.end(CLOSE_ENDING, "")

    async def _in(self) -> None:
        try:
            async for message in self._websocket:
                if message.type is not WSMsgType.BINARY:
                    raise FrameError("only binary messages are part of the relay's protocol")
                self._sender.send(unpack(message.data))
        except WireError as error:
            self.end(CLOSE_BAD_MESSAGE, error.message)
        except ConnectionError:
            pass
        finally:
            self.end(CLOSE_ENDING, "")
