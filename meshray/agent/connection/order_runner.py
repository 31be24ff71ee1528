"""Carry out orders of the mesh's administrator; see `meshray.protocol.orders`.

>>> orders = OrderRunner({LOGS: logs}, send, connection_number)
>>> await orders.carry_out(order)          # until it has ended, was cancelled, or its connection has ended
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

from meshray.errors import MeshrayError, RefusedError
from meshray.linux.tasks import Tasks
from meshray.protocol.connection import CHUNK_BYTES, CancelOrder, Message, Order, OrderCredit, OrderEnd, OrderOutput
from meshray.protocol.orders import REMOTE_REFUSED

log = logging.getLogger(__name__)

#: The number of orders at the same time.
MAX_ORDERS = 8
#: The interval at which an order checks whether its connection still exists, seconds.
_CHECK_S = 1.0
_LONGEST_ERROR = 300

#: Takes the arguments and yields the output in parts of any length.
Operation = Callable[[Mapping[str, object]], AsyncGenerator[bytes, None]]


class OrderRunner:
    """The orders in progress on this node.

    Args:
        operations: by the order's name; others are refused.
        send: sends a message to the coordinator.
        connection_number: returns a number that differs for each connection to the coordinator; 0 without one. Orders
            end with their connection.
        is_refused: this node accepts no orders (``join --no-remote``).
    """

    def __init__(
        self,
        operations: Mapping[str, Operation],
        send: Callable[[Message], Awaitable[None]],
        connection_number: Callable[[], int],
        *,
        is_refused: bool = False,
    ) -> None:
        self._operations = operations
        self._send = send
        self._connection_number = connection_number
        self._is_refused = is_refused
        self._running: dict[str, _Running] = {}

    async def carry_out(self, order: Order) -> None:
        """Carry out one order and send its output; an operation's exceptions are never raised."""
        if order.id in self._running:
            return
        running = self._running[order.id] = _Running(order.credit)
        work = Tasks()
        try:
            working = work.start(self._answer(order, running), f"order {order.op}")
            connected = work.start(self._while_connected(), "connection of an order")
            cancelled = work.start(_until(running.cancelled), "cancellation of an order")
            await asyncio.wait([working, connected, cancelled], return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._running[order.id]
            await work.close()

    def add_credit(self, message: OrderCredit) -> None:
        """Let an order send more output."""
        if (running := self._running.get(message.id)) is not None:
            running.add_credit(message.credit)

    def cancel(self, message: CancelOrder) -> None:
        """Stop an order."""
        if (running := self._running.get(message.id)) is not None:
            running.cancelled.set()

    async def _answer(self, order: Order, running: _Running) -> None:
        log.info("the coordinator orders: %s %s", order.op, dict(order.arguments))
        try:
            async with aclosing(self._operation(order.op)(order.arguments)) as output:
                async for data in output:
                    for start in range(0, len(data), CHUNK_BYTES):
                        await running.spend()
                        part = base64.b64encode(data[start : start + CHUNK_BYTES]).decode()
                        await self._send(OrderOutput(order.id, part))
            end = OrderEnd(order.id)
        except MeshrayError as error:
            log.warning("the order %s failed: %s", order.op, error.message)
            end = OrderEnd(order.id, error.code, error.message[:_LONGEST_ERROR], (error.hint or "")[:_LONGEST_ERROR])
        except Exception:  # An order must not end the agent.
            log.exception("the order %s failed", order.op)
            end = OrderEnd(
                order.id, "order_failed", "the agent failed to carry out this order", "meshray node logs NODE agent"
            )
        await self._send(end)

    def _operation(self, op: str) -> Operation:
        if self._is_refused:
            raise RefusedError(
                REMOTE_REFUSED,
                "this node accepts no remote orders: it joined with --no-remote",
                hint="run the command on that node",
            )
        if op not in self._operations:
            raise MeshrayError(
                "order_unknown",
                f"this node's meshray does not know the order {op[:32]!r}",
                hint="update meshray on that node",
            )
        if len(self._running) > MAX_ORDERS:
            raise MeshrayError("busy", f"{MAX_ORDERS} orders are in progress on this node", hint="try again later")
        return self._operations[op]

    async def _while_connected(self) -> None:
        number = self._connection_number()
        while True:
            await asyncio.sleep(_CHECK_S)
            if self._connection_number() != number:
                return


class _Running:
    """One order.

    Attributes:
        cancelled: set once the coordinator no longer wants the output.
    """

    def __init__(self, credit: int) -> None:
        self.cancelled = asyncio.Event()
        self._credit = credit
        self._spent = 0
        self._added = asyncio.Event()

    def add_credit(self, credit: int) -> None:
        self._credit = max(self._credit, credit)
        self._added.set()

    async def spend(self) -> None:
        """Return once another part may be sent."""
        while self._spent >= self._credit:
            self._added.clear()
            await self._added.wait()
        self._spent += 1


async def _until(event: asyncio.Event) -> None:
    await event.wait()
