"""Keeps the ports of every Ray on this node closed to all but the overlay, and open to its members.

    what Ray is told to use ─┐
    what its processes hear ─┼─► firewall.decide ──► Firewall.close
    what others serve ───────┘

The first time is before Ray is started. After that it is looked at every LOOK_S: a port that an actor opens by itself,
or a Ray that somebody starts by hand, is closed within that time. Members reach the ports of Ray's range and those that
the kernel chooses for programs at once, another port of a Ray within LOOK_S.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Protocol

from meshray.errors import MeshrayError
from meshray.firewall import Closed, Listening, decide
from meshray.model.problem import Problem
from meshray.raynode.listeners import ListeningSocket

log = logging.getLogger(__name__)

#: As long as TCP waits before it tries a connection again: a new port answers members at the second try.
LOOK_S = 1.0
#: What could not be closed is tried again after this.
AGAIN_S = 5.0
_LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: Linux' own choice.
_USUAL_LOCAL_PORTS = range(32768, 61000)


class Closes(Protocol):
    """Of `meshray.agent.dependencies.FirewallPart`."""

    def close(self, closed: Closed) -> list[str]:
        """Closes these ports and no others; returns what changed."""

    def problems(self) -> list[Problem]:
        """What could not be done."""

    @property
    def unguarded(self) -> str:
        """Why Ray's ports are open to others than the overlay; empty: they are not."""


class HasPorts(Protocol):
    """Of `meshray.agent.dependencies.RayPart`."""

    @property
    def ports(self) -> Sequence[int | range]:
        """The TCP ports that Ray uses here, or may choose to use."""


def require_guarded(firewall: Closes | None, *, unguarded: bool) -> None:
    """Raises MeshrayError where Ray must not start, because others than the mesh would reach its ports.

    Args:
        firewall: None: there is nothing to close, nothing but the overlay leads in.
        unguarded: the user does without it (``--unguarded``).
    """
    if firewall is not None and firewall.unguarded and not unguarded:
        raise MeshrayError(
            "unguarded",
            f"Ray is not started: {firewall.unguarded}",
            hint="apt-get install nftables; or with --unguarded, where every network of this machine may use Ray",
        )


def log_firewall(lines: list[str]) -> None:
    """What a firewall changed, as log lines."""
    for line in lines:
        log.info("firewall: %s", line)


class PortGuard:
    """One node's.

    Args:
        ray: the Ray that the mesh runs here; None: there is none (yet). Another Ray's ports are closed all the same.
        listening: all that listens on this machine now. Blocks.
        never: ports that stay open: the mesh's own.
        network: the overlay's addresses.
    """

    def __init__(
        self,
        firewall: Closes,
        ray: Callable[[], HasPorts | None],
        listening: Callable[[], list[ListeningSocket]],
        never: Collection[int],
        network: IPv4Network,
    ) -> None:
        self._firewall = firewall
        self._ray = ray
        self._listening = listening
        self._never = never
        self._network = network
        self._closed = Closed()
        # Nearly always the same as two seconds ago; to decide costs more than to look.
        self._seen: tuple[Sequence[int | range], list[ListeningSocket]] | None = None
        self._told: list[Problem] = []
        self._failed_at = 0.0
        self._one_at_a_time = asyncio.Lock()

    async def close(self) -> None:
        """Looks, and closes what is not closed yet. Returns when that is done, or has turned out to be impossible."""
        async with self._one_at_a_time:
            lines = await asyncio.to_thread(self._close, self._ray())
        for line in lines:
            log.info("firewall: %s", line)
        problems = self._firewall.problems()
        for problem in problems:
            if problem not in self._told:
                log.error("firewall: %s", problem.text)
        self._told = problems

    def _close(self, ray: HasPorts | None) -> list[str]:
        ports = ray.ports if ray is not None else ()
        seen = ports, self._listening()
        failed = bool(self._firewall.unguarded)
        again = failed and time.monotonic() > self._failed_at + AGAIN_S
        if seen == self._seen and not again:
            return []
        listening = [Listening(heard.port, heard.address, heard.of_ray, heard.only_ipv6) for heard in seen[1]]
        chosen = _local_ports() if ray is not None else range(0)
        closed = decide(ports, listening, self._never, network=self._network, chosen=chosen)
        self._seen = seen
        if closed == self._closed and not again:
            return []
        self._closed = closed
        try:
            return self._firewall.close(closed)
        finally:
            self._failed_at = time.monotonic()


def _local_ports() -> range:
    """The ports that the kernel chooses for programs of this machine."""
    try:
        first, last = map(int, _LOCAL_PORTS.read_text().split())
    except (OSError, ValueError):
        return _USUAL_LOCAL_PORTS
    return range(first, last + 1)
