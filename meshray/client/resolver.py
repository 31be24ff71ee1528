"""Names of the coordinator, for aiohttp: looked up apart from the event loop's threads (`meshray.linux.dns`).

Members report at which names they reach the coordinator, so how slowly such a name resolves is theirs to choose.

>>> session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Resolver()))
"""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from meshray.linux.dns import addresses


class Resolver(AbstractResolver):
    """Resolves as the machine does."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of the host. Raises OSError where it has none."""
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
        """Does nothing: each lookup ends by itself."""
