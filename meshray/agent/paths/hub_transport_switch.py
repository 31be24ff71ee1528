"""The carrier of the tunnel to the coordinator's hub: plain UDP, or the relay where UDP does not pass.

    HubTransport (pure) ──wss──► RelayClient: WireGuard dials its port on loopback
                        ──udp──► the hub's own address again

`meshray.agent.paths.hub_transport` decides; this module observes, probes and switches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from meshray.agent.backoff import backoff_s
from meshray.agent.paths.hub_monitor import HubMonitor
from meshray.agent.paths.hub_transport import HubTransport
from meshray.agent.paths.liveness import only_handshakes
from meshray.agent.paths.mtu import SIZES
from meshray.agent.paths.prober import Prober
from meshray.client.coordinator import Coordinator
from meshray.linux.clock import boot_s
from meshray.model.node import Node
from meshray.model.path import Mode, Transport
from meshray.relay.client import RelayClient
from meshray.wireguard.config import DeviceState

log = logging.getLogger(__name__)

#: The interval at which the decision is made again, seconds.
CHECK_S = 0.25
#: The timeout of a trial of UDP, seconds.
_TRIAL_TIMEOUT_S = 1.0


class Carrier:
    """The transport of one node's tunnel to the hub beside the coordinator.

    Args:
        coordinator: returns the possible addresses of its relay, which are outside of the overlay.
        hub: returns that hub in the current map; None if there is none.
        device: returns the last read state of the device.
        switched: called with the hub when it must be dialled at another endpoint.
    """

    def __init__(
        self,
        mode: Mode,
        coordinator: Callable[[], Coordinator],
        hub: Callable[[], Node | None],
        hubs: HubMonitor,
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
        self._only_handshakes = False

    @property
    def only_handshakes(self) -> bool:
        """Whether UDP was given up because handshakes passed and data did not."""
        return self._client is not None and self._only_handshakes

    def network_changed(self) -> None:
        """Handle a change of network: the new one may let UDP pass, or not."""
        self._transport = self._transport.restart_timeout(boot_s())
        if self._client is not None:
            self._client.try_udp_again()

    def restart_timeout(self) -> None:
        """Give the tunnel time for a new handshake after a key change."""
        self._transport = replace(self._transport, since=boot_s())

    async def run(self, prober: Prober | None) -> None:
        """Keep the tunnel on its current carrier, and change the carrier when needed, until cancelled."""
        try:
            while True:
                hub = self._hub()
                if hub is not None:
                    await self._check(hub, prober)
                await asyncio.sleep(CHECK_S)
        finally:
            await self._leave_relay()

    async def _check(self, hub: Node, prober: Prober | None) -> None:
        now = boot_s()
        if self._running is not None and self._running.done():
            # The task never ends normally: the error that ended it must not be lost.
            self._running.result()
        handshake, alive = self._hubs.last_handshake(self._device(), hub.id), self._hubs.liveness(hub.id)
        client = self._client
        udp_alive = client is not None and prober is not None and await self._udp_passes(hub, prober, client)
        before = self._transport
        self._transport = before.step(
            handshake, udp_alive, now, dead=alive.is_dead, relay_connected=client is not None and client.connected
        )
        if self._transport.kind == Transport.WSS and self._client is None:
            self._only_handshakes = only_handshakes(handshake, alive)
            await self._enter_relay(hub)
        elif self._transport.kind == Transport.UDP and self._client is not None:
            await self._leave_relay()

    async def _udp_passes(self, hub: Node, prober: Prober, client: RelayClient) -> bool:
        """Return whether data passes by UDP, if a trial is due."""
        if not prober.is_open or not self._transport.may_try_udp(boot_s()):
            return False
        if not client.connected:
            # All packets go by UDP as well, and by no other transport.
            answer = await prober.round_trip(hub.ip, _TRIAL_TIMEOUT_S, size=SIZES[-1])
            return answer is not None and not client.connected
        if not client.trial_is_due:
            return False
        client.begin_trial()
        await prober.round_trip(hub.ip, _TRIAL_TIMEOUT_S, size=SIZES[-1])
        if not client.udp_alive.is_set():
            # The hub may have received a packet by UDP and may answer there, where nothing passes: make it hear the
            # relay again.
            await prober.round_trip(hub.ip, _TRIAL_TIMEOUT_S)
        return client.udp_alive.is_set()

    async def _enter_relay(self, hub: Node) -> None:
        why = "handshakes pass over UDP, but data does not" if self._only_handshakes else "no answer over UDP"
        log.warning("%s: the tunnel to the hub goes through the relay", why)
        client = RelayClient(
            self._coordinator,
            lambda: self._hubs.address(hub.id),
            pause_s=backoff_s,
            tries_udp=self._mode == "auto" and self._hubs.dialled(hub.id) is not None,
        )
        self._hubs.set_relay(hub.id, await client.open())
        self._client = client
        self._running = asyncio.get_running_loop().create_task(client.run(), name="relay")
        self._switched(hub)

    async def _leave_relay(self) -> None:
        client, running, self._client, self._running = self._client, self._running, None, None
        if client is None:
            return
        log.info("the tunnel to the hub goes over UDP again")
        hub = self._hub()
        if hub is not None:
            self._hubs.set_relay(hub.id, None)
            self._switched(hub)
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await running
        client.close()
