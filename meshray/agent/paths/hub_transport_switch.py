"""The carrier of the tunnel to the coordinator's hub: plain UDP, or the relay where UDP does not pass or is limited.

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
from functools import partial

from meshray.agent.backoff import backoff_s
from meshray.agent.paths.hub_monitor import HubMonitor
from meshray.agent.paths.hub_transport import OUTAGE_S, TIMES_FASTER, HubTransport, UdpLimit
from meshray.agent.paths.liveness import only_handshakes
from meshray.agent.paths.mtu import SIZES
from meshray.agent.paths.prober import Prober
from meshray.agent.paths.udp_limit import LimitWatch, count_lost_segments, find_limit, measure_rate
from meshray.client.coordinator import Coordinator
from meshray.linux import overlay_netns
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
        wake: called when the device should be read again.
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
        wake: Callable[[], None],
    ) -> None:
        self._transport = HubTransport.start(mode, boot_s())
        self._mode = mode
        self._coordinator = coordinator
        self._hub = hub
        self._hubs = hubs
        self._device = device
        self._switched = switched
        self._wake = wake
        self._client: RelayClient | None = None
        self._running: asyncio.Task[None] | None = None
        self._only_handshakes = False
        self._watch = LimitWatch()
        self._watched: DeviceState | None = None
        self._comparing: asyncio.Task[None] | None = None

    @property
    def limit(self) -> UdpLimit | None:
        """The limit of UDP because of which the relay is used; None: it is not, or is only being compared."""
        limit = self._transport.limit
        return limit if limit is not None and limit.relay_kbit_s is not None else None

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
            if self._comparing is not None:
                self._comparing.cancel()
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
        if prober is not None and prober.is_open and self._transport.may_compare(now):
            await self._watch_limit(hub, prober, now)

    async def _watch_limit(self, hub: Node, prober: Prober, now: float) -> None:
        """Look for lost packets if the device was read again, and compare UDP with the relay if there are many."""
        device, moved_bytes = self._read(hub)
        if self._comparing is not None:
            if not self._comparing.done():
                return
            done, self._comparing = self._comparing, None
            done.result()
        if device is self._watched or moved_bytes is None:
            return
        self._watched = device
        self._watch = self._watch.moved(moved_bytes, now)
        if not self._watch.is_busy or self._watch.at != now:
            return  # The reconciler may read the device more often than a rate can be computed.
        lost = await asyncio.to_thread(overlay_netns.run, count_lost_segments)
        self._watch = self._watch.counted(lost, now)
        if self._watch.is_due:
            self._comparing = asyncio.get_running_loop().create_task(self._compare(hub, prober), name="compare")

    async def _compare(self, hub: Node, prober: Prober) -> None:
        """Measure whether UDP is limited, and if so, whether the relay carries much more."""

        async def echo(timeout_s: float, size: int) -> float | None:
            return await prober.round_trip(hub.ip, timeout_s, size=size)

        used_kbit_s = self._watch.rate_kbit_s
        limit_kbit_s = await find_limit(echo, SIZES[-1], used_kbit_s)
        self._watch = self._watch.measured(limited=limit_kbit_s is not None, now=boot_s())
        if limit_kbit_s is None:
            log.info(
                "packets are lost on the path to the hub at %.1f Mbit/s: not by a limit of UDP", used_kbit_s / 1000
            )
            return
        self._transport = self._transport.compare(limit_kbit_s, boot_s())
        for _ in range(round(OUTAGE_S / CHECK_S)):
            if self._transport.limit is None or self._relays:
                break
            await asyncio.sleep(CHECK_S)
        if self._transport.limit is None:
            return
        wanted = TIMES_FASTER * limit_kbit_s
        rate = await measure_rate(echo, SIZES[-1], wanted, partial(self._moved, hub)) if self._relays else 0.0
        self._transport = self._transport.compared(rate, boot_s())
        log.warning(
            "UDP to the hub is limited to about %.1f Mbit/s; the relay carries %.1f Mbit/s: the tunnel uses %s",
            limit_kbit_s / 1000,
            rate / 1000,
            "the relay" if self.limit is not None else "UDP",
        )

    def _moved(self, hub: Node) -> tuple[DeviceState | None, int]:
        """Return the device as it was read last, which is read again, and the bytes of the hub's peer in it."""
        self._wake()
        device, moved_bytes = self._read(hub)
        return device, moved_bytes or 0

    def _read(self, hub: Node) -> tuple[DeviceState | None, int | None]:
        """Return the device as it was read last, and the bytes of the hub's peer in it; None: it has no such peer."""
        device = self._device()
        peer = device.peers.get(hub.public_key) if device is not None else None
        return device, peer.rx_bytes + peer.tx_bytes if peer is not None else None

    @property
    def _relays(self) -> bool:
        return self._client is not None and self._client.connected

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
        if self._transport.limit is not None:
            why = f"UDP is limited to about {self._transport.limit.kbit_s / 1000:.1f} Mbit/s"
        elif self._only_handshakes:
            why = "handshakes pass over UDP, but data does not"
        else:
            why = "no answer over UDP"
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
