"""Give an order to a node: send it to the coordinator and receive its output.

>>> async for data in give_order(coordinator, OrderForm("gpu-1", LOGS)): ...
>>> async for data in give_order_with_pass(session, OrderForm("gpu-1", LOGS)): ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from meshray.client.coordinator import Coordinator
from meshray.client.page_session import PageSession
from meshray.errors import UnreachableError
from meshray.protocol.codec import decode, encode
from meshray.protocol.error import error_of
from meshray.protocol.orders import OrderForm, OrderResult

if TYPE_CHECKING:
    import aiohttp

#: The interval at which empty output is yielded while there is none, seconds: it shows whether the receiver still
#: exists.
ALIVE_S = 2.0


async def give_order(coordinator: Coordinator, form: OrderForm) -> AsyncGenerator[bytes, None]:
    """Yield the output of the order; empty bytes while there is none. The order is cancelled when the caller stops.

    Raises:
        UnreachableError: the coordinator does not answer, or its connection ended.
        MeshrayError: the error with which the order ended.
    """
    connection = await coordinator.open_order()
    try:
        async for data in _output(connection.socket, form):
            yield data
    finally:
        await connection.close()


async def give_order_with_pass(session: PageSession, form: OrderForm) -> AsyncGenerator[bytes, None]:
    """Yield the output of the order as `give_order` does, with the session of a pass.

    Raises:
        RefusedError: ``session_ended``, also when it ends before the order; ``level_too_low``; ``order_needs_root``.
        UnreachableError: the coordinator does not answer, or its connection ended.
        MeshrayError: the error with which the order ended.
    """
    connection = await session.order()
    try:
        async for data in _output(connection.socket, form):
            yield data
    except _Unfinished:
        await session.require()
        raise
    finally:
        await connection.close()


class _Unfinished(UnreachableError):
    """The connection ended before the order."""


async def _output(socket: aiohttp.ClientWebSocketResponse[bool], form: OrderForm) -> AsyncGenerator[bytes, None]:
    import aiohttp

    try:
        await socket.send_str(encode(form))
    except ConnectionError:
        raise _unfinished() from None
    while True:
        try:
            message = await socket.receive(timeout=ALIVE_S)
        except asyncio.TimeoutError:
            yield b""
            continue
        if message.type is aiohttp.WSMsgType.BINARY:
            yield message.data
        elif message.type is aiohttp.WSMsgType.TEXT:
            result = decode(message.data, OrderResult)
            if result.code:
                raise error_of(result)
            return
        else:
            raise _unfinished()


def _unfinished() -> _Unfinished:
    return _Unfinished(
        "coordinator_unreachable",
        "the coordinator ended the connection before the order was finished",
        hint="on the head: meshray status; meshray audit",
    )
