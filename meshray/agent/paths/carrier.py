"""What carries the tunnel to the coordinator's hub: plain UDP, or the relay where UDP does not pass.

    HubTransport (pure) ──wss──► RelayClient: WireGuard dials its port on loopback
                        ──udp──► the hub's own address again

The deciding is in `meshray.agent.paths.transport`; this looks, probes and switches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from meshray.agent.backoff import backoff_s
from meshray.agent.client import Coordinator
from meshray.agent.paths.hubkeeper import HubKeeper
from meshray.agent.paths.prober import Prober
from meshray.agent.paths.transport import HubTransport, Mode
from meshray.model.address import Endpoint
from meshray.model.node import Node
from meshray.relay.client import RelayClient
from meshray.runtime.clock import boot_s
from meshray.wireguard.device import DeviceState

log = logging.getLogger(__name__)

#: How often the decision is looked at.
LOOK_S = 0.25
#: A hub over UDP is probed this often, so that silence means something.
PROBE_S = 8.0
_PROBE_TIMEOUT_S = 2.0


class Carrier:
    """The transport of one node's tunnel to the hub beside the coordinator.

    Args:
        coordinator: where its relay may be: the addresses outside of the overlay.
        hub: that hub in the map of the moment; None while there is none.
        device: as it was read last.
        switched: called with the hub when it is to be dialled elsewhere.
    """

    def __init__(
        self,
        mode: Mode,
        coordinator: Callable[[], Coordinator],
        hub: Callable[[], Node | None],
        hubs: HubKeeper,
        *,
        device: Callable[[], DeviceState | None],
        switched: Callable[[Node], None],
    ) -> None:
        self._transport = HubTransport.start(mode, boot_s())
        self._mode = mode
        self._coordinator = coordinator
        self._hub = hub
        self._hubs = hubs
        self._device = device
        self._switched = switched
        self._client: RelayClient | None = None
        self._running: asyncio.Task[None] | None = None
        self._last_heard: float | None = None
        self._next_probe = 0.0

    def network_changed(self) -> None:
        """Another network may let UDP pass, or may not."""
        self._transport = replace(self._transport, since=boot_s())
        if self._client is not None:
            self._client.try_udp_again()

    def begin_again(self) -> None:
        """A key was changed: the tunnel needs a new handshake, and gets the time for it."""
        self._transport = replace(self._transport, since=boot_s())

    async def run(self, prober: Prober | None) -> None:
        """Keeps the tunnel on what carries it, until cancelled."""
        try:
            while True:
                hub = self._hub()
                if hub is not None:
                    await self._look(hub, prober)
                await asyncio.sleep(LOOK_S)
        finally:
            await self._leave_relay()

    async def _look(self, hub: Node, prober: Prober | None) -> None:
        now = boot_s()
        if self._running is not None and self._running.done():
            # It never ends by itself: what ended it is a fault, which is not to go unseen.
            self._running.result()
        handshake = self._hubs.last_heard(self._device(), hub.id)
        if prober is not None and handshake is not None and now >= self._next_probe:
            self._next_probe = now + PROBE_S
            if await prober.probe(hub.ip, _PROBE_TIMEOUT_S) is not None:
                self._last_heard = boot_s()
        udp_alive = self._client is not None and self._client.udp_alive.is_set()
        before = self._transport
        self._transport = before.step(handshake, udp_alive, now, last_heard=self._last_heard)
        if self._transport.kind == "wss" and self._client is None:
            await self._enter_relay(hub)
        elif self._transport.kind == "udp" and self._client is not None:
            await self._leave_relay()

    async def _enter_relay(self, hub: Node) -> None:
        log.warning("no answer by UDP: the tunnel to the hub goes through the relay")
        # For the trials of UDP; without any address there are none.
        outside = self._hubs.dialled(hub.id)
        tries_udp = self._mode == "auto" and outside is not None
        client = RelayClient(
            self._coordinator(), outside or Endpoint(str(hub.ip), 9), pause_s=backoff_s, tries_udp=tries_udp
        )
        self._hubs.go_through(hub.id, await client.open())
        self._client = client
        self._running = asyncio.get_running_loop().create_task(client.run(), name="relay")
        self._switched(hub)

    async def _leave_relay(self) -> None:
        client, running, self._client, self._running = self._client, self._running, None, None
        if client is None:
            return
        log.info("the tunnel to the hub goes by UDP again")
        hub = self._hub()
        if hub is not None:
            self._hubs.go_through(hub.id, None)
            self._switched(hub)
        self._last_heard = boot_s()
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await running
        client.close()
