"""The endpoints of a hub: its interfaces' addresses, and the cloud's public one, which is requested repeatedly.

    cloud metadata ──┐
                     ├──► endpoints ──► hello ──► map, tokens
    interfaces ──────┘

A cloud assigns another public address to a machine that is stopped and started; the machine itself does not see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

from meshray.linux.addresses import interface_addresses
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.runtime.cloud_metadata import public_addresses
from meshray.runtime.own_endpoints import endpoints_of

log = logging.getLogger(__name__)

#: The interval of requests to a cloud that answered, seconds.
REFRESH_S = 30.0
#: The pause after no answer: it doubles, since most machines are not in a cloud.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0
#: A cloud that answered before and now gives no address this many times has none for this machine.
MISSES = 3


class HubEndpoints:
    """The endpoints of one hub.

    Args:
        known: the map's endpoints, which are used until the first request to the cloud.
        fetch_public: returns the public addresses; blocks for at most a second.
        own: returns the addresses of the interfaces; raises OSError if the kernel does not answer.
    """

    def __init__(
        self,
        known: Sequence[Endpoint],
        fetch_public: Callable[[], Awaitable[Sequence[IPv4Address]]] = public_addresses,
        own: Callable[[], Sequence[IPv4Address | IPv6Address]] = interface_addresses,
    ) -> None:
        self._known = tuple(known)
        self._fetch_public = fetch_public
        self._own = own
        self._public: tuple[IPv4Address, ...] | None = None
        self._misses = 0
        self._refresh_now = asyncio.Event()

    async def read(self, port: int, network: OverlayNetwork) -> tuple[Endpoint, ...]:
        """Return the current endpoints, all with this port; the known ones if the kernel does not answer."""
        if self._public is None:
            return self._known
        try:
            own = await asyncio.to_thread(self._own)
        except OSError as error:
            log.warning("the addresses of this machine cannot be read: %s", error)
            return self._known
        return endpoints_of(self._public, (ip for ip in own if ip not in network), port)

    def network_changed(self) -> None:
        """Query the cloud at once."""
        self._refresh_now.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Query the cloud until cancelled, and call ``changed`` whenever its answer changes."""
        pause_s = FIRST_PAUSE_S
        while True:
            self._refresh_now.clear()
            if self._take(tuple(await self._fetch_public())):
                changed()
            pause_s = REFRESH_S if self._public else min(LONGEST_PAUSE_S, 2 * pause_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._refresh_now.wait(), pause_s)
                pause_s = FIRST_PAUSE_S

    def _take(self, found: tuple[IPv4Address, ...]) -> bool:
        """Return whether this answer changes the endpoints."""
        before = self._public
        if found or before is None:
            self._public, self._misses = found, 0
        elif before:
            self._misses += 1
            if self._misses >= MISSES:
                self._public = ()
        if before is not None and self._public != before:
            log.info("the cloud's address of this machine: %s", ", ".join(map(str, self._public or ())) or "none")
        return self._public != before
