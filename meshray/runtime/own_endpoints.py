"""The addresses at which others may reach this machine: those of its interfaces, and public ones of the cloud.

A joining machine tries all of them at once. A superfluous address costs little; a missing one prevents the join.

>>> await find_endpoints(51888)
(Endpoint(host='203.0.113.7', port=51888), Endpoint(host='192.168.1.20', port=51888))
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from meshray.linux.addresses import interface_addresses
from meshray.model.address import Endpoint
from meshray.model.endpoints import choose_endpoints
from meshray.runtime.cloud_metadata import public_addresses

Address = IPv4Address | IPv6Address


async def find_endpoints(port: int) -> tuple[Endpoint, ...]:
    """Return public addresses, then those of the interfaces, with this port; at most as many as a token holds."""
    public, own = await asyncio.gather(public_addresses(), asyncio.to_thread(interface_addresses))
    return endpoints_of(public, own, port)


def endpoints_of(public: Iterable[Address], own: Iterable[Address], port: int) -> tuple[Endpoint, ...]:
    """Return the endpoints of known addresses. An address that the cloud reports is public, whatever it looks like."""
    return choose_endpoints([Endpoint(str(ip), port) for ip in public], (Endpoint(str(ip), port) for ip in own))
