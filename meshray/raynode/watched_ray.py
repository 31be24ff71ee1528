"""The common part of a node's Ray, whether meshray or another program starts it: what the agent hands over and reads.

agent ──► instance, tokens, labels, drained ──► the next `step`
agent ◄── ports, node table, the head's instance ◄── Ray
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address

from meshray.home import Home
from meshray.linux.user import User
from meshray.model.ray_state import RayState
from meshray.raynode.command import RayPlan
from meshray.raynode.dashboard_client import LiveNode
from meshray.raynode.node_table import NodeTable
from meshray.raynode.tokens import RayTokens


class WatchedRay(ABC):
    """One node's Ray.

    Args:
        on_instance: called with the instance of this head's Ray; empty: it is down.

    Attributes:
        last_error: why Ray is not running, or why it is slow; empty when all is well.
    """

    def __init__(
        self, plan: RayPlan, home: Home, user: User, *, tokens: RayTokens, on_instance: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._given_labels = plan.labels
        self._home = home
        self._user = user
        self._tokens = tokens
        self._on_instance = on_instance
        self._instance = ""
        self._drained = False
        self._reported: str | None = None
        self._changed = asyncio.Event()
        self.check_now = self._changed.set  # Check at once: another part has observed a newer state of Ray.
        self.last_error = ""
        self._table = NodeTable(home, plan, user, lambda: self.token)

    @property
    @abstractmethod
    def token(self) -> str | None:
        """The token of the Ray that runs here; else of the head's. None: it has not been received, or Ray uses none."""

    @property
    def ports(self) -> Sequence[int | range]:
        """The TCP ports that Ray uses here, or may choose to use."""
        return self._plan.used_ports

    async def live_nodes(self) -> list[LiveNode] | None:
        """Return the living nodes in Ray's table, several per address included; None if it cannot be read."""
        return await self._table.live_nodes()

    async def node_table(self, *, with_use: bool = False) -> Mapping[IPv4Address, RayState] | None:
        """Return Ray's node table, on request with the resources in use; None if it cannot be read."""
        return await self._table.states(with_use=with_use)

    def hold_tokens(self, tokens: Mapping[int, str]) -> None:
        """Hold these tokens now, by epoch. The head's next start uses the newest."""
        self._tokens.replace(tokens)
        self._changed.set()

    def head_instance(self, instance: str) -> None:
        """Use the map's instance of the head's Ray; empty while it is down. Only workers react."""
        if instance != self._instance:
            self._instance = instance
            self._changed.set()

    def head_at(self, ip: IPv4Address) -> None:
        """Use the head at this address from the next start on: a mesh may get another head node."""
        if ip != self._plan.head_ip:
            self._plan = replace(self._plan, head_ip=ip)
            self._table.use_plan(self._plan)
            self._changed.set()

    def label(self, labels: Mapping[str, str]) -> None:
        """Add labels for the next start of Ray; the user's labels remain."""
        self._plan = replace(self._plan, labels={**labels, **self._given_labels})

    def drained(self, drained: bool) -> None:
        """Set whether Ray stays away from this node. A Ray that runs is left alone until it ends."""
        if drained != self._drained:
            self._drained = drained
            self._changed.set()

    async def run(self) -> None:
        """Take one step after another until cancelled. Nothing that Ray does ends it."""
        while True:
            self._changed.clear()
            delay = await self.step()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), delay)

    @abstractmethod
    async def step(self) -> float:
        """Take the next step; return the seconds until the next one."""

    def _report(self, instance: str) -> None:
        if self._plan.head and instance != self._reported:
            self._reported = instance
            self._on_instance(instance)
