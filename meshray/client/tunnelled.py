"""HTTPS over an open byte stream, for example one that ssh carries.

>>> async with session_over(stream, token.fingerprint) as session:
...     await coordinator.request(session, "POST", "/v1/enroll", body)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from meshray.errors import RefusedError

#: A user may first have to type a password for the stream, seconds. Its opener closes it on failure.
_PATIENCE_S = 120.0
_CLOSING_S = 0.05


class _OneStream(aiohttp.BaseConnector):
    """A connector that always uses this stream, regardless of the address."""

    def __init__(self, stream: socket.socket, fingerprint: bytes) -> None:
        super().__init__(limit=1)
        self._stream = stream
        self._fingerprint = fingerprint
        self._transport: asyncio.BaseTransport | None = None

    async def abort(self) -> None:
        """Abort the connection: the loop may end with this call, and a TLS shutdown would need another round."""
        if isinstance(self._transport, asyncio.Transport):
            # Python 3.11.2 (Debian 12) raises it if a TLS transport is closed twice, as aiohttp may do.
            with contextlib.suppress(AttributeError):
                self._transport.abort()
        await asyncio.sleep(_CLOSING_S)

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Only the fingerprint is trusted. It is compared before any byte is sent.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._stream.setblocking(False)
        try:
            transport, protocol = await self._loop.create_connection(
                self._factory,
                sock=self._stream,
                ssl=context,
                server_hostname="meshray",
                ssl_handshake_timeout=_PATIENCE_S,
            )
        except BaseException:
            # asyncio closes its transport in the next round of the loop, which may be the last one.
            await asyncio.sleep(_CLOSING_S)
            raise
        self._transport = transport
        found = transport.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
        if not hmac.compare_digest(hashlib.sha256(found).digest(), self._fingerprint):
            transport.abort()
            raise RefusedError(
                "token_other_mesh",
                "not the coordinator that this token is for: another certificate answered",
                hint="make a new token on the head: meshray token create",
            )
        return protocol


@asynccontextmanager
async def session_over(stream: socket.socket, fingerprint: bytes) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a session whose requests all use the stream.

    Args:
        fingerprint: the SHA-256 of the certificate. Another certificate raises RefusedError.
    """
    connector = _OneStream(stream, fingerprint)
    timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            yield session
    finally:
        await connector.abort()
