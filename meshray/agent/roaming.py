"""What an agent does when its machine has another address or router, or woke from sleep: it looks at everything again.

netlink, clocks ──► endpoints told anew · peers dialled anew · link moved · paths, transport and MTU tried again
netlink, of the overlay's interface and routes ──► the device is compared with what it should be, nothing else
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Network

from meshray.agent.agent import Agent
from meshray.agent.device.device_monitor import DeviceChange

log = logging.getLogger(__name__)


async def follow_network(agent: Agent, changes: Callable[[], AsyncIterator[str]]) -> None:
    """Acts on every change until cancelled."""
    async for what in changes():
        log.info("the network changed: %s", what)
        agent.endpoints_changed()
        if agent.parts.hub_endpoints is not None:
            agent.parts.hub_endpoints.network_changed()
        agent.names.network_changed()
        agent.hub_names.network_changed()
        agent.peer_resets.send_from_another_address()
        agent.carrier.network_changed()
        if agent.mtus is not None:
            agent.mtus.network_changed()
        if agent.pairs is not None:
            agent.pairs.network_changed()
        agent.wake()
        if agent.parts.endpoints is not None:
            # A link from an address that is gone would only be missed after its next heartbeats.
            here = await agent.parts.endpoints(1, agent.map.mesh.network)
            await agent.link.hurry({endpoint.host for endpoint in here})


async def follow_device(agent: Agent, changes: Callable[[str, IPv4Network], AsyncIterator[DeviceChange]]) -> None:
    """Has the device repaired after every change, until cancelled."""
    async for change in changes(agent.parts.device.name, agent.map.mesh.network.cidr):
        agent.route_repairs.seen(change.culprit)
        agent.wake()
