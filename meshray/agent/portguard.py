"""Keeps the ports of this node's Ray closed to all but the overlay, whatever Ray listens on.

    what Ray is told to use ─┐
    what its processes hear ─┼─► firewall.decide ──► Firewall.close
    what others serve ───────┘

The first time is before Ray is started. After that it is looked at every LOOK_S: a port that an actor opens by itself
is closed within that time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from meshray.firewall import Closed, Listening, decide
from meshray.raynode.listeners import Heard

log = logging.getLogger(__name__)

LOOK_S = 2.0


class Closes(Protocol):
    """Of `meshray.agent.parts.FirewallPart`."""

    def close(self, closed: Closed) -> list[str]:
        """Closes these ports and no others; returns what changed."""

    def problems(self) -> list[str]:
        """What could not be done."""


class HasPorts(Protocol):
    """Of `meshray.agent.parts.RayPart`."""

    @property
    def ports(self) -> Sequence[int | range]:
        """The TCP ports that Ray uses here, or may choose to use."""

    def listening(self) -> list[Heard]:
        """All that listens on this machine now. Blocks."""


class PortGuard:
    """One node's.

    Args:
        ray: whose ports they are; None: there is no Ray (yet), and nothing to close.
        never: ports that stay open: the mesh's own.
    """

    def __init__(self, firewall: Closes, ray: Callable[[], HasPorts | None], never: Collection[int]) -> None:
        self._firewall = firewall
        self._ray = ray
        self._never = never
        self._closed = Closed()
        # Nearly always the same as two seconds ago; to decide costs more than to look.
        self._seen: tuple[Sequence[int | range], list[Heard]] | None = None
        self._told: list[str] = []
        self._one_at_a_time = asyncio.Lock()

    async def close(self) -> None:
        """Looks, and closes what is not closed yet. Returns when that is done, or has turned out to be impossible."""
        ray = self._ray()
        if ray is None:
            return
        async with self._one_at_a_time:
            lines = await asyncio.to_thread(self._close, ray)
        for line in lines:
            log.info("firewall: %s", line)
        problems = self._firewall.problems()
        for problem in problems:
            if problem not in self._told:
                log.error("firewall: %s", problem)
        self._told = problems

    async def run(self) -> None:
        """Until cancelled, which leaves all as it is."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.close()

    def _close(self, ray: HasPorts) -> list[str]:
        seen = ray.ports, ray.listening()
        if seen == self._seen:
            return []
        listening = [Listening(heard.port, heard.address, heard.of_ray) for heard in seen[1]]
        closed, self._seen = decide(seen[0], listening, self._never), seen
        if closed == self._closed:
            return []
        self._closed = closed
        return self._firewall.close(closed)
