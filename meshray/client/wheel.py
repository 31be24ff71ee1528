"""Fetch a wheel of meshray from the coordinator.

>>> await fetch_wheel(coordinator, sha256, size, path)
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from meshray.client.coordinator import Coordinator
from meshray.errors import MeshrayError, UnreachableError
from meshray.protocol.codec import decode, encode
from meshray.protocol.error import error_of
from meshray.protocol.orders import OrderResult, WheelForm

if TYPE_CHECKING:
    import aiohttp

#: The coordinator sends something at shorter intervals, seconds.
_SILENCE_S = 30.0


async def fetch_wheel(coordinator: Coordinator, sha256: str, size: int, path: Path) -> None:
    """Write the wheel with this digest and size, bytes, to a new file.

    Raises:
        UnreachableError: the coordinator does not answer, or its connection ended.
        MeshrayError: ``upgrade_damaged``: it sent something else; an error of the coordinator.
    """
    connection = await coordinator.open_wheel()
    try:
        with path.open("xb") as file:
            await connection.socket.send_str(encode(WheelForm(sha256)))
            received = await _receive(connection.socket, file, size)
    finally:
        await connection.close()
    if received != sha256:
        raise MeshrayError(
            "upgrade_damaged", "the coordinator sent another wheel than the ordered one", hint="try again"
        )


async def _receive(socket: aiohttp.ClientWebSocketResponse[bool], file: BinaryIO, size: int) -> str:
    import aiohttp

    digest, left = hashlib.sha256(), size
    while left > 0:
        message = await socket.receive(timeout=_SILENCE_S)
        if message.type is aiohttp.WSMsgType.BINARY and len(message.data) <= left:
            digest.update(message.data)
            file.write(message.data)
            left -= len(message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            raise error_of(decode(message.data, OrderResult))
        else:
            raise UnreachableError(
                "coordinator_unreachable",
                "the coordinator ended the connection before the wheel was complete",
                hint="try again",
            )
    return digest.hexdigest()
