"""A resolver for aiohttp that does not use the event loop's threads (`meshray.linux.dns`).

Members report the names at which they reach the coordinator, and so determine how slowly such a name resolves.

>>> session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Resolver()))
"""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from meshray.linux.dns import addresses


class Resolver(AbstractResolver):
    """Resolves names with the machine's resolver."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of the host. Raises OSError if it has none."""
        return [
            ResolveResult(
                hostname=host,
                host=str(ip),
                port=port,
                family=socket.AF_INET if ip.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for ip in await addresses(host, family)
        ]

    async def close(self) -> None:
        """Do nothing: lookups end on their own."""
