"""Handle nodes that do not answer: report them to the coordinator, and hold or close their connections.

SilenceWatch ──┬──► `Silence` to the coordinator, from its own node: the map, and so status, has it
               ├──► silent: TCP connections to them are held (`meshray.firewall.connection_holds`)
               └──► gone: TCP connections to them are closed, so that no program waits for an answer for ever
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address

from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.dependencies import FirewallPart
from meshray.agent.paths.silence_detection import SilenceWatch
from meshray.agent.state import NodeState
from meshray.linux import overlay_netns
from meshray.linux.sockets import close_connections
from meshray.model.node import COORDINATOR, GONE, Node
from meshray.protocol.connection import Silence
from meshray.protocol.fields import MAX_ITEMS

log = logging.getLogger(__name__)

#: The interval at which the coordinator's connection is checked when nothing changed, seconds.
_CHECK_S = 1.0
#: The delay that lets GCS learn first that a node is dead: a program that loses a connection earlier asks GCS, and
#: would learn that the node is alive.
_CLOSE_AFTER_S = 2.0


class SilentNodes:
    """The actions of one agent; see the module's docstring.

    Args:
        firewall: holds connections; None: connections are not held.
    """

    def __init__(
        self,
        watch: SilenceWatch,
        connection: CoordinatorConnection,
        firewall: FirewallPart | None,
        state: NodeState,
    ) -> None:
        self._watch = watch
        self._connection = connection
        self._firewall = firewall
        self._state = state
        self._changed = asyncio.Event()
        self._reported: Mapping[str, str] = {}
        self._hold_failure = ""
        self._gone: dict[IPv4Address, float] = {}
        self._closed: set[IPv4Address] = set()

    def check_soon(self) -> None:
        """Handle a node that became silent, is gone, or answers again, here or in the map."""
        self._changed.set()

    async def run(self) -> None:
        """Act on changes until cancelled."""
        while True:
            self._changed.clear()
            await self._report()
            await self._hold_connections()
            await self._close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _CHECK_S)

    async def _report(self) -> None:
        nodes = self._state.map.nodes
        me = nodes.get(self._state.enrolment.node_id)
        if me is None or COORDINATOR not in me.roles:
            return
        if not self._connection.is_open:
            self._reported = {}  # The next coordinator process knows nothing of it.
            return
        found = self._watch.verdicts()
        # Entries that the map still has and no node confirms count as well: they may come from an earlier agent.
        reported = {**{node.id: node.silence for node in nodes.values() if node.silence}, **self._reported}
        changes = {
            key: found.get(key, "") for key in reported.keys() | found.keys() if reported.get(key) != found.get(key, "")
        }
        for chunk in _chunks(changes):
            await self._connection.send(Silence(chunk))
        self._reported = {key: found.get(key, "") for key in reported.keys() | found.keys() if key in nodes}

    async def _hold_connections(self) -> None:
        if self._firewall is None:
            return
        silent = [node.ip for node in self._state.others if self._watch.is_silent(node)]
        failed = await asyncio.to_thread(self._firewall.hold, silent)
        if failed and failed != self._hold_failure:
            log.warning("connections to nodes that do not answer cannot be held: %s", failed)
        self._hold_failure = failed

    async def _close(self) -> None:
        now = time.monotonic()
        gone = {node.ip for node in self._state.others if self._is_gone(node)}
        self._gone = {ip: self._gone.get(ip, now) for ip in gone}
        self._closed &= gone
        for ip in [ip for ip, since in self._gone.items() if now - since >= _CLOSE_AFTER_S and ip not in self._closed]:
            self._closed.add(ip)
            try:
                count = await asyncio.to_thread(overlay_netns.run, close_connections, ip)
            except OSError as error:
                log.warning("the connections to %s cannot be closed: %s", ip, error.strerror)
            else:
                log.info("%d connections to %s were closed", count, ip)

    def _is_gone(self, node: Node) -> bool:
        """Return whether the node is gone for this node too: its own connections may work, whatever others report."""
        return self._watch.is_gone(node) or (node.silence == GONE and self._watch.is_silent(node))


def _chunks(changes: Mapping[str, str]) -> Iterator[dict[str, str]]:
    items = list(changes.items())
    for start in range(0, len(items), MAX_ITEMS):
        yield dict(items[start : start + MAX_ITEMS])
