"""The WebSocket from which nodes fetch a wheel that the head offers for an upgrade."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

from aiohttp import WSMsgType, web

from meshray.protocol.codec import WireError, decode, encode
from meshray.protocol.orders import MAX_ORDER_BYTES, OrderResult, WheelForm

_FORM_S = 10.0
_CLOSE_S = 2.0
_PART_BYTES = MAX_ORDER_BYTES // 2
#: A connection that takes nothing is ended after this, seconds.
_SEND_S = 30.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


async def serve_wheel(folder: Path, request: web.Request) -> web.WebSocketResponse:
    """Send the wheel of this folder that the node requests by its digest; return when it was sent."""
    websocket = web.WebSocketResponse(max_msg_size=MAX_ORDER_BYTES, compress=False, timeout=_CLOSE_S)
    await websocket.prepare(request)
    with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
        message = await websocket.receive(timeout=_FORM_S)
        if message.type is WSMsgType.TEXT:
            await _send(websocket, folder, message.data)
            await websocket.close()
    return websocket


async def _send(websocket: web.WebSocketResponse, folder: Path, text: str) -> None:
    path = _path(folder, text)
    if path is None:
        hint = "on the head: meshray node upgrade NODE"
        await websocket.send_str(encode(OrderResult("no_wheel", "the head offers no such wheel", hint, 1)))
        return
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, _PART_BYTES):
            await asyncio.wait_for(websocket.send_bytes(data), _SEND_S)


def _path(folder: Path, text: str) -> Path | None:
    try:
        digest = decode(text, WheelForm).sha256
    except WireError:
        return None
    path = folder / f"{digest}.whl"
    return path if _DIGEST.fullmatch(digest) and path.is_file() else None
