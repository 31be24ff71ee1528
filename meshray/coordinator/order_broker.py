"""Orders to agents: their output arrives in parts, of which an agent sends only as many as its credit allows.

    Order(credit=4) ──►
                    ◄── OrderOutput, at most 4
    OrderCredit(5)  ──►                          once the first part was passed on
                    ◄── OrderEnd

>>> async for part in orders.run(node, form): ...
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncGenerator

from meshray.coordinator.publisher import Publisher
from meshray.errors import MeshrayError, RefusedError, UnreachableError
from meshray.model.node import Node
from meshray.protocol.connection import CancelOrder, Order, OrderCredit, OrderEnd, OrderOutput
from meshray.protocol.orders import REMOTE_REFUSED, OrderForm

#: The parts of an order that an agent sends before the first of them was passed on: they wait in memory here.
WINDOW = 4
#: The number of orders at the same time.
MAX_ORDERS = 32


class OrderBroker:
    """The orders in progress. Needs an event loop."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._running: dict[str, _Running] = {}
        #: Whether the connected nodes accept orders, by id; None: their meshray does not know orders.
        self._accepting: dict[str, bool | None] = {}

    def announced(self, node_id: str, accepts: bool | None) -> None:
        """Record whether the node accepts orders, as its agent reports; None: its meshray does not know orders."""
        self._accepting[node_id] = accepts

    async def run(self, node: Node, form: OrderForm) -> AsyncGenerator[bytes, None]:
        """Give the order to the node's agent and yield its output. The order is cancelled when the caller stops.

        Raises:
            UnreachableError: ``node_offline``: the agent is not connected, or its connection ended.
            RefusedError: ``remote_refused``: the node accepts no orders.
            MeshrayError: ``orders_unknown``: its meshray is too old; ``busy``; the error of the agent.
        """
        self._require_accepting(node)
        if len(self._running) >= MAX_ORDERS:
            raise MeshrayError("busy", f"{MAX_ORDERS} orders are in progress already", hint="try again later")
        order_id = secrets.token_hex(8)
        running = self._running[order_id] = _Running(node)
        self._publisher.notify(node.id, Order(order_id, form.order, form.arguments, WINDOW))
        passed_on = 0
        try:
            while (part := await running.next()) is not None:
                yield part
                passed_on += 1
                running.credit = passed_on + WINDOW
                self._publisher.notify(node.id, OrderCredit(order_id, running.credit))
        finally:
            del self._running[order_id]
            if not running.has_ended:
                self._publisher.notify(node.id, CancelOrder(order_id))

    def take(self, node_id: str, message: OrderOutput | OrderEnd) -> bool:
        """Take an agent's message; return False if it belongs to none of its orders."""
        running = self._running.get(message.id)
        if running is None or running.node.id != node_id:
            return False
        running.take(message)
        return True

    def disconnected(self, node_id: str) -> None:
        """End the orders of this node, whose connection has ended."""
        self._accepting.pop(node_id, None)
        for running in self._running.values():
            if running.node.id == node_id:
                name = running.node.name
                running.end(
                    UnreachableError(
                        "node_offline",
                        f"the connection of {name}'s agent ended before it finished the order",
                        hint=f"meshray status; on {name}: meshray logs agent",
                    )
                )

    def _require_accepting(self, node: Node) -> None:
        if node.id not in self._accepting or not self._publisher.is_connected(node.id):
            raise UnreachableError(
                "node_offline",
                f"{node.name}'s agent is not connected to the coordinator",
                hint=f"on {node.name}: meshray up",
            )
        accepts = self._accepting[node.id]
        if accepts is None:
            raise MeshrayError(
                "orders_unknown",
                f"the meshray of {node.name} is too old: it knows no remote orders",
                hint=f"update meshray on {node.name}, then there: meshray down; meshray up",
            )
        if not accepts:
            raise RefusedError(
                REMOTE_REFUSED,
                f"{node.name} accepts no remote orders: it joined with --no-remote",
                hint=f"run the command on {node.name} itself",
            )


class _Running:
    """One order: what its agent has sent and nobody has taken yet."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.credit = WINDOW
        self.has_ended = False
        self._received = 0
        self._parts: asyncio.Queue[bytes | MeshrayError | None] = asyncio.Queue()

    async def next(self) -> bytes | None:
        """Return the next part; None after the last one. Raises the error with which the order ended."""
        part = await self._parts.get()
        if isinstance(part, MeshrayError):
            raise part
        return part

    def take(self, message: OrderOutput | OrderEnd) -> None:
        """Take a message of the agent."""
        if self.has_ended:
            return
        if isinstance(message, OrderEnd):
            error = _error(message) if message.code or message.message else None
            return self.end(error)
        self._received += 1
        if self._received > self.credit:
            return self.end(_bad_answer(self.node, "sent more than it was allowed to"))
        data = None
        with contextlib.suppress(ValueError):
            data = base64.b64decode(message.data, validate=True)
        if data is None:
            return self.end(_bad_answer(self.node, "sent output that is not base64"))
        self._parts.put_nowait(data)

    def end(self, error: MeshrayError | None) -> None:
        """End the order."""
        if not self.has_ended:
            self.has_ended = True
            self._parts.put_nowait(error)


def _error(message: OrderEnd) -> MeshrayError:
    kind = RefusedError if message.code == REMOTE_REFUSED else MeshrayError
    return kind(message.code or "order_failed", message.message, hint=message.hint)


def _bad_answer(node: Node, what: str) -> MeshrayError:
    return MeshrayError("bad_answer", f"the agent of {node.name} {what}", hint=f"update meshray on {node.name}")
