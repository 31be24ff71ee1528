"""Where a hub is reached: its interfaces' addresses, and the cloud's public one, asked again and again.

    cloud metadata ──┐
                     ├──► endpoints ──► hello ──► map, tokens
    interfaces ──────┘

A cloud gives a machine that is stopped and started another public address, which the machine itself does not see.
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

#: Between two questions to a cloud that answered, seconds.
AGAIN_S = 30.0
#: The same where nothing answered: the pause doubles, since most machines are in no cloud.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0
#: A cloud that answered before and gives no address so many times in a row has none for this machine any more.
MISSES = 3


class HubEndpoints:
    """The endpoints of one hub.

    Args:
        known: what the map shows; it counts until the cloud was asked once.
        ask: for the public addresses; blocks for no longer than a second.
        own: the addresses of the interfaces. Raises OSError where the kernel does not tell.
    """

    def __init__(
        self,
        known: Sequence[Endpoint],
        ask: Callable[[], Awaitable[Sequence[IPv4Address]]] = public_addresses,
        own: Callable[[], Sequence[IPv4Address | IPv6Address]] = interface_addresses,
    ) -> None:
        self._known = tuple(known)
        self._ask = ask
        self._own = own
        self._public: tuple[IPv4Address, ...] | None = None
        self._misses = 0
        self._hurry = asyncio.Event()

    async def read(self, port: int, network: OverlayNetwork) -> tuple[Endpoint, ...]:
        """Return the endpoints of this moment, all with this port; those that were known where the kernel does not
        tell."""
        if self._public is None:
            return self._known
        try:
            own = await asyncio.to_thread(self._own)
        except OSError as error:
            log.warning("the addresses of this machine cannot be read: %s", error)
            return self._known
        return endpoints_of(self._public, (ip for ip in own if ip not in network), port)

    def network_changed(self) -> None:
        """The cloud is asked at once."""
        self._hurry.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Asks the cloud until cancelled, and calls ``changed`` whenever its answer is another one."""
        pause_s = FIRST_PAUSE_S
        while True:
            self._hurry.clear()
            if self._take(tuple(await self._ask())):
                changed()
            pause_s = AGAIN_S if self._public else min(LONGEST_PAUSE_S, 2 * pause_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), pause_s)
                pause_s = FIRST_PAUSE_S

    def _take(self, found: tuple[IPv4Address, ...]) -> bool:
        """Whether this answer changes something."""
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
