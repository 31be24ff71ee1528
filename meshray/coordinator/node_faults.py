"""The faults of nodes that others must know: they are recorded in the registry, so that the map carries them.

A node itself reports only that it is a hub and cannot forward. The coordinator itself detects that two machines use one
identity (`meshray.coordinator.takeovers`).

>>> faults = Faults(ledger, publisher, clock)
>>> await faults.connected("n1", instance, "192.0.2.1")
>>> await faults.reported("n2", {"hub_forwards": "forwarding cannot be switched on: Read-only file system"})
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from meshray.coordinator.publisher import Publisher
from meshray.coordinator.registry import Outcome, Registry
from meshray.coordinator.registry_writer import Ledger
from meshray.coordinator.takeovers import Takeovers
from meshray.model.node import HUB, HUB_FORWARDS, LONGEST_DETAIL, ONE_IDENTITY, Node
from meshray.model.printable import printable
from meshray.protocol.connection import TookOver

_log = logging.getLogger(__name__)


class Faults:
    """The faults of one mesh's nodes.

    Args:
        clock: seconds of a clock that is never set.
    """

    def __init__(self, ledger: Ledger, publisher: Publisher, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._clock = clock
        self._takeovers = Takeovers()
        # The address of the agent that the node's newest one replaced, until the newest one has received it.
        self._took_over: dict[str, str] = {}

    async def connected(self, node_id: str, instance: str, address: str, *, takes_over: bool) -> None:
        """Record that an agent of the node connected.

        Args:
            instance: the instance of its process; empty: it does not send one.
            takes_over: another connection of the node was open.
        """
        if takes_over and self._takeovers.is_different(node_id, instance):
            self._took_over[node_id] = self._takeovers.address(node_id)
        both = self._takeovers.connected(node_id, instance, address, self._clock())
        if both:
            _log.error("two machines use the identity of node %s: %s", node_id, both)
            await self._note(node_id, ONE_IDENTITY, both)

    def notify_taken_over(self, node_id: str, instance: str) -> None:
        """Send an agent that just connected the address of the agent that it replaced; empty: it replaced none.

        The agent then waits to see whether the other one reconnects.
        """
        if instance:
            self._publisher.notify(node_id, TookOver(self._took_over.pop(node_id, "")))

    async def given_up(self, node_id: str, instance: str) -> None:
        """Record that this agent gives up the node's identity, which belongs to another machine."""
        if self._takeovers.given_up(node_id, instance):
            await self._note(node_id, ONE_IDENTITY, "")

    async def reported(self, node_id: str, faults: Mapping[str, str]) -> bool:
        """Record a node's faults; return whether they changed. Raises UnknownError."""
        node = self._ledger.registry.member(node_id).node
        detail = reported_detail(node, faults)
        is_new = node.faults.get(HUB_FORWARDS, "") != detail
        if is_new:
            await self._note(node_id, HUB_FORWARDS, detail)
        return is_new

    async def settle(self) -> None:
        """Forget conflicts that are over; to be called every few seconds."""
        for node_id in self._takeovers.resolved(self._clock()):
            await self._note(node_id, ONE_IDENTITY, "")

    def forget(self, node_id: str) -> None:
        """Forget a removed node."""
        self._takeovers.forget(node_id)
        self._took_over.pop(node_id, None)

    async def _note(self, node_id: str, code: str, detail: str) -> None:
        await self._ledger.change(lambda registry: noted(registry, node_id, code, detail), durable=False)


def noted(registry: Registry, node_id: str, code: str, detail: str) -> Outcome[None]:
    """Return the registry with this fault of a node; an empty detail removes the fault (pure)."""
    member = registry.members.get(node_id)
    if member is None:
        return registry, (), None
    faults = {key: text for key, text in member.node.faults.items() if key != code}
    if detail:
        faults[code] = detail
    changed, rows, _ = registry.put(replace(member, node=replace(member.node, faults=faults)))
    return changed, rows, None


def reported_detail(node: Node, faults: Mapping[str, str]) -> str:
    """Return the accepted part of a node's report: of a hub, one short line of printable text (pure)."""
    if HUB not in node.roles:
        return ""
    return printable(faults.get(HUB_FORWARDS, ""))[:LONGEST_DETAIL]
