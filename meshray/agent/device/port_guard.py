"""Keep the ports of every Ray on this node closed to all but the overlay, and open to its members.

    ports that Ray is to use ─┐
    its listening sockets ────┼─► firewall.decide ──► Firewall.close
    other programs' sockets ──┘

The ports are closed before Ray starts, and checked every CHECK_S after that: a port that an actor opens, or a Ray that
a user starts by hand, is closed within that time. Members reach the ports of Ray's range and the kernel's ephemeral
ports at once, other ports of a Ray within CHECK_S.
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

#: TCP's delay before it repeats a connection attempt: a new port answers members at the second attempt.
CHECK_S = 1.0
#: The delay before a failed closing is retried, seconds.
RETRY_S = 5.0
_LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: Linux's default range.
_USUAL_LOCAL_PORTS = range(32768, 61000)


class PortCloser(Protocol):
    """The part of `meshray.agent.dependencies.FirewallPart` that is used here."""

    def close(self, closed: Closed) -> list[str]:
        """Close exactly these ports; return what changed."""

    def problems(self) -> list[Problem]:
        """Return the failures of the last call."""

    @property
    def unguarded(self) -> str:
        """The reason why Ray's ports are reachable from outside the overlay; empty: they are not."""


class HasPorts(Protocol):
    """The part of `meshray.agent.dependencies.RayPart` that is used here."""

    @property
    def ports(self) -> Sequence[int | range]:
        """The TCP ports that Ray uses here, or may choose to use."""


def require_guarded(firewall: PortCloser | None, *, unguarded: bool) -> None:
    """Raise MeshrayError if Ray must not start because its ports would be reachable from outside the mesh.

    Args:
        firewall: None: there is nothing to close, because only the overlay leads in.
        unguarded: the user allows that (``--unguarded``).
    """
    if firewall is not None and firewall.unguarded and not unguarded:
        raise MeshrayError(
            "unguarded",
            f"Ray is not started: {firewall.unguarded}",
            hint="apt-get install nftables; or with --unguarded, where every network of this machine may use Ray",
        )


def log_firewall(changes: list[str]) -> None:
    """Log a firewall's changes."""
    for change in changes:
        log.info("firewall: %s", change)


class PortGuard:
    """The port guard of one node.

    Args:
        ray: the Ray that the mesh runs here; None: there is none (yet). The ports of another Ray are closed
            nevertheless.
        listening: returns all listening sockets of this machine. Blocks.
        excluded: the mesh's own ports, which stay open.
        network: the overlay's addresses.
        exposed: ports of Ray that a user leaves open to all.
    """

    def __init__(
        self,
        firewall: PortCloser,
        ray: Callable[[], HasPorts | None],
        listening: Callable[[], list[ListeningSocket]],
        excluded: Collection[int],
        network: IPv4Network,
        *,
        exposed: Collection[int] = (),
    ) -> None:
        self._firewall = firewall
        self._ray = ray
        self._listening = listening
        self._excluded = excluded
        self._network = network
        self._exposed = exposed
        self._closed = Closed()
        # Usually nothing changed since two seconds ago, and deciding costs more than reading.
        self._last_input: tuple[Sequence[int | range], list[ListeningSocket]] | None = None
        self._reported: list[Problem] = []
        self._failed_at = 0.0
        self._lock = asyncio.Lock()

    @property
    def listening_sockets(self) -> Sequence[ListeningSocket]:
        """The listening sockets of this machine when they were last read."""
        return self._last_input[1] if self._last_input is not None else ()

    async def close(self) -> None:
        """Read the ports, and close those that are open. Returns when that is done, or has failed."""
        async with self._lock:
            changes = await asyncio.to_thread(self._close, self._ray())
        log_firewall(changes)
        problems = self._firewall.problems()
        for problem in problems:
            if problem not in self._reported:
                log.error("firewall: %s", problem.text)
        self._reported = problems

    def _close(self, ray: HasPorts | None) -> list[str]:
        ports = ray.ports if ray is not None else ()
        current = ports, self._listening()
        failed = bool(self._firewall.unguarded)
        is_retry = failed and time.monotonic() > self._failed_at + RETRY_S
        if current == self._last_input and not is_retry:
            return []
        listening = [Listening(found.port, found.address, found.of_ray, found.only_ipv6) for found in current[1]]
        chosen = _local_ports() if ray is not None else range(0)
        closed = decide(ports, listening, self._excluded, network=self._network, chosen=chosen, exposed=self._exposed)
        self._last_input = current
        if closed == self._closed and not is_retry:
            return []
        self._closed = closed
        try:
            return self._firewall.close(closed)
        finally:
            self._failed_at = time.monotonic()


def _local_ports() -> range:
    """Return the kernel's ephemeral ports on this machine."""
    try:
        first, last = map(int, _LOCAL_PORTS.read_text().split())
    except (OSError, ValueError):
        return _USUAL_LOCAL_PORTS
    return range(first, last + 1)
