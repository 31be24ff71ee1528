"""The WebSocket on which an administrator gives one order; the messages are in `meshray.protocol.orders`.

Every order is in the audit log before a node receives it, and again with its result.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from aiohttp import WSMsgType, web

from meshray.coordinator.service import Service
from meshray.errors import MeshrayError, RefusedError
from meshray.linux.tasks import Tasks
from meshray.protocol.codec import decode, encode
from meshray.protocol.orders import MAX_ORDER_BYTES, REMOTE_REFUSED, OrderForm, OrderResult, needs_root

#: The order must arrive within this, seconds.
FORM_S = 10.0
_CLOSE_S = 2.0
#: The longest arguments in the audit log, characters.
_LONGEST_ARGUMENTS = 200


@dataclass(frozen=True)
class Giver:
    """The sender of an order.

    Attributes:
        by: who it is, for the audit log.
        source: the address from which the request came.
        account: whose budget limits its refusals: the node of a member, or `meshray.coordinator.budgets.pass_account`.
        refusal: why this sender may give no orders; None: it may.
        orders: the only orders that this sender may give; None: all.
    """

    by: str
    source: str
    account: str
    refusal: RefusedError | None = None
    orders: frozenset[str] | None = None

    def refusal_of(self, order: str) -> RefusedError | None:
        """Return why the sender may not give this order; None: it may."""
        if self.refusal is None and self.orders is not None and order not in self.orders:
            return needs_root(order)
        return self.refusal


async def serve_order(service: Service, request: web.Request, giver: Giver) -> web.WebSocketResponse:
    """Carry out one order; return when it has ended or its sender has hung up."""
    # There are no pings: a sender that shows a long log page by page reads nothing for a long time.
    websocket = web.WebSocketResponse(max_msg_size=MAX_ORDER_BYTES, compress=False, timeout=_CLOSE_S)
    await websocket.prepare(request)
    try:
        message = await websocket.receive(timeout=FORM_S)
        if message.type is not WSMsgType.TEXT:
            return websocket
        result = await _carry_out(service, websocket, message.data, giver)
        await websocket.send_str(encode(result))
    except (ConnectionError, asyncio.TimeoutError):
        return websocket
    await websocket.close()
    return websocket


async def _carry_out(service: Service, websocket: web.WebSocketResponse, text: str, giver: Giver) -> OrderResult:
    try:
        form = decode(text, OrderForm)
        node = service.member_named(form.node).node
    except MeshrayError as error:
        return _result(error)
    about = {"order": form.order, "arguments": _short(form)}
    if (refusal := giver.refusal_of(form.order)) is not None:
        # A member must not fill the disk.
        if service.budgets.may_record_refusal(giver.account):
            service.audit.note(
                "order_refused", by=giver.by, source=giver.source, node=node.name, **about, code=refusal.code
            )
        return _result(refusal)
    code = "cancelled"
    try:
        service.audit.record("order", by=giver.by, source=giver.source, node=node.name, **about)
        async with aclosing(service.orders.run(node, form)) as output:
            work = Tasks()
            try:
                sending = work.start(_send(websocket, output), f"order to {node.name}")
                hung_up = work.start(_until_hung_up(websocket), "sender of an order")
                await asyncio.wait([sending, hung_up], return_when=asyncio.FIRST_COMPLETED)
                if not sending.done():
                    raise ConnectionResetError("the sender of the order has hung up")
                sending.result()
            finally:
                await work.close()
        code = "done"
        return OrderResult()
    except MeshrayError as error:
        code = error.code
        return _result(error)
    finally:
        event = "order_refused" if code == REMOTE_REFUSED else "order_ended"
        service.audit.note(event, by=giver.by, source=giver.source, node=node.name, order=form.order, code=code)


async def _send(websocket: web.WebSocketResponse, output: AsyncIterator[bytes]) -> None:
    async for part in output:
        await websocket.send_bytes(part)


async def _until_hung_up(websocket: web.WebSocketResponse) -> None:
    while (await websocket.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
        pass


def _short(form: OrderForm) -> str:
    return json.dumps(form.arguments, default=str)[:_LONGEST_ARGUMENTS] if form.arguments else ""


def _result(error: MeshrayError) -> OrderResult:
    return OrderResult(error.code, error.message, error.hint or "", error.exit_code)
