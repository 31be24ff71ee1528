"""A client's WebSocket that also gives access to its transport, for a protocol that takes the connection over, and to
the headers of the server's answer.

>>> async with aiohttp.ClientSession(ws_response_class=TransportWebSocket) as session:
...     (await session.ws_connect(url)).transport
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import aiohttp


class TransportWebSocket(aiohttp.ClientWebSocketResponse[Literal[True]]):
    """A WebSocket; see the module's docstring.

    Attributes:
        transport: the connection, or None if it was lost during the handshake.
        headers: the headers of the server's answer.
    """

    def __init__(
        self,
        reader: Any,
        writer: Any,
        protocol: str | None,
        response: aiohttp.ClientResponse,
        *args: Any,
        **options: Any,
    ) -> None:
        super().__init__(reader, writer, protocol, response, *args, **options)
        connection = response.connection
        self.transport: asyncio.Transport | None = None if connection is None else connection.transport
        self.headers = response.headers
