"""By which addresses others may reach this machine: those of its interfaces, and the cloud's public ones.

A joining machine tries all of them at once, so one too many costs little and one too few costs the mesh.

>>> await find_endpoints(51888)
(Endpoint(host='203.0.113.7', port=51888), Endpoint(host='192.168.1.20', port=51888))
"""

from __future__ import annotations

import asyncio

from meshray.coordinator.metadata import public_addresses
from meshray.model.address import Endpoint
from meshray.runtime.addresses import interface_addresses


async def find_endpoints(port: int) -> tuple[Endpoint, ...]:
    """Public addresses first, then those of the interfaces, all with this port."""
    public, own = await asyncio.gather(public_addresses(), asyncio.to_thread(interface_addresses))
    return tuple(dict.fromkeys(Endpoint(str(address), port) for address in (*public, *own)))
