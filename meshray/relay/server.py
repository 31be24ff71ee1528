"""The relay's side at the hub: one WebSocket per node, whose datagrams go to the hub's own WireGuard.

    app.router.add_get("/v1/relay", …)  ──►  Relay(port).serve(request, node_id, is_member)

A node has one connection: the newest wins. What is malformed ends the connection on which it came, and `drop`
ends a node's at once when it is removed from the mesh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import WSMsgType, web

from meshray.linux.tasks import Tasks
from meshray.protocol.codec import WireError
from meshray.relay.frames import MAX_MESSAGE_BYTES, FrameError, unpack
from meshray.relay.pump import Pump, keep_unsent_small
from meshray.relay.udp import LOOPBACK, Sender, open_loopback

#: A ping this often, an answer within half of it.
HEARTBEAT_S = 10.0
#: How long the other side gets for its half of the closing handshake.
CLOSE_S = 2.0

#: The same codes as on the agent's link (`meshray.coordinator.publisher`).
CLOSE_NOT_ACCEPTED = 4401
CLOSE_REPLACED = 4409
CLOSE_BAD_MESSAGE = 1008
CLOSE_ENDING = 1001
_REMOVED = "this node was removed from the mesh"

_log = logging.getLogger(__name__)


class Relay:
    """Every node's way to one WireGuard port of this machine.

    Args:
        port: UDP, on loopback; nothing else is ever sent to.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: dict[str, _Connection] = {}

    @property
    def count(self) -> int:
        """How many nodes are connected."""
        return len(self._connections)

    async def serve(self, request: web.Request, node_id: str, is_member: Callable[[], bool]) -> web.WebSocketResponse:
        """Carries one node's datagrams until either side ends it.

        Args:
            is_member: whether it is still one once the connection stands; from then on `drop` tells.
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
        _log.info("node %s comes through the relay", node_id)
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
        """The node is none of the mesh any more: its connection, where it has one, ends now."""
        connection = self._connections.get(node_id)
        if connection is not None:
            connection.end(CLOSE_NOT_ACCEPTED, _REMOVED)

    def close(self) -> None:
        """Ends every connection."""
        for connection in self._connections.values():
            connection.end(CLOSE_ENDING, "the coordinator ends")


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
        """The first reason stands."""
        if not self._code:
            self._code, self.reason = code, reason
        self._ended.set()

    async def run(self) -> None:
        """Both directions, until `end`."""
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
        """Politely if the other side answers soon, else at once."""
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
