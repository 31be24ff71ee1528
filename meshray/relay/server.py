"""The relay's server on the hub: one WebSocket per node, whose datagrams go to the hub's own WireGuard.

    app.router.add_get("/v1/relay", …)  ──►  Relay(port).serve(request, node_id, is_member)

A node has one connection: the newest replaces an older one. A malformed message ends its connection, and `drop` ends a
node's connection when the node is removed from the mesh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from meshray.protocol.connection import CLOSE_ENDING, CLOSE_NOT_ACCEPTED, CLOSE_REPLACED
from meshray.relay.frames import FORM_HEADER, GROUPS
from meshray.relay.pump import Pump
from meshray.relay.udp import LOOPBACK, open_loopback

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
        # aiohttp performs the handshake. From then on `RelayWebSocket` has the connection, without a turn of the event
        # loop between the two: the client sends nothing before it has the answer.
        in_groups = request.headers.get(FORM_HEADER) == GROUPS
        response = web.WebSocketResponse(compress=False)
        if in_groups:
            response.headers[FORM_HEADER] = GROUPS
        await response.prepare(request)
        if request.transport is None:
            raise ConnectionResetError("the connection was lost during the handshake")
        connection = _Connection(request.transport, self._port, in_groups=in_groups)
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
        await connection.close()
        return response

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
    def __init__(self, transport: asyncio.Transport, port: int, *, in_groups: bool) -> None:
        self._pump = Pump(open_loopback((LOOPBACK, port)))
        self._websocket = self._pump.carry(transport, in_groups=in_groups, is_client=False)
        self._pump.start()
        self.reason = ""

    def end(self, code: int, reason: str) -> None:
        """End the connection: from now on nothing passes. The first reason counts."""
        self.reason = self.reason or reason
        self._websocket.begin_close(code, reason)

    async def run(self) -> None:
        """Carry both directions until `end`, or until the other side ends it."""
        try:
            await self._websocket.wait_closing()
        finally:
            self.end(CLOSE_ENDING, self._websocket.error)
            self._pump.close()

    async def close(self) -> None:
        """Finish the closing handshake, or abort if the other side does not answer soon."""
        await self._websocket.close(CLOSE_ENDING)
