"""Roaming: when the machine gets another address or router, or wakes from sleep, the agent checks everything again.

netlink, clocks ──► endpoints reported, peers dialled, connection moved, paths, transport and MTU tried again
netlink, of the overlay's interface and routes ──► only the device is reconciled
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.dependencies import Dependencies
from meshray.agent.device.device_monitor import DeviceChange
from meshray.agent.device.reconciler import Reconciler
from meshray.agent.paths.paths import Paths
from meshray.agent.state import NodeState

log = logging.getLogger(__name__)


async def follow_network(
    changes: AsyncIterator[str],
    state: NodeState,
    parts: Dependencies,
    *,
    paths: Paths,
    reconciler: Reconciler,
    connection: CoordinatorConnection,
) -> None:
    """Handle every network change until cancelled."""
    async for what in changes:
        log.info("the network changed: %s", what)
        reconciler.endpoints_changed()
        if parts.hub_endpoints is not None:
            parts.hub_endpoints.network_changed()
        paths.network_changed()
        if parts.endpoints is not None:
            # A connection from an address that is gone would otherwise only be detected after several heartbeats.
            endpoints = await parts.endpoints(1, state.map.mesh.network)
            await connection.reconnect({endpoint.host for endpoint in endpoints})


async def follow_device(changes: AsyncIterator[DeviceChange], reconciler: Reconciler) -> None:
    """Reconcile the device after every change of it, until cancelled."""
    async for change in changes:
        reconciler.route_changed(change.culprit)
