"""The loop that compares the WireGuard device with what it should be, and takes the steps in between.

    read ──► resets, new keys ──► plan(observed, desired) ──► apply ──► read again ──► what others learn from it

It runs when it is woken, often while something is expected of a peer, and now and then. The deciding is done elsewhere
(`desired`, `paths`, `wireguard.plan`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from meshray.agent.backoff import backoff_s
from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.device.desired import desired_device
from meshray.agent.device.epoch_trials import EpochTrials
from meshray.agent.device.handshakes import Handshakes
from meshray.agent.device.key_rotation import KeyRotation
from meshray.agent.device.rekeying import Rekeying, new_keys
from meshray.agent.device.route_repairs import RouteRepairs
from meshray.agent.paths.paths import Paths
from meshray.agent.state import NodeState
from meshray.agent.status.progress import Progress
from meshray.errors import MeshrayError
from meshray.linux.clock import boot_s, unix_s
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, Node
from meshray.wireguard.config import DeviceConfig, DeviceState
from meshray.wireguard.device import Device
from meshray.wireguard.plan import AddPeer, SetRoute, Step, plan

log = logging.getLogger(__name__)

#: How often the device is compared with what it should be when nothing is known to have changed, seconds.
RECONCILE_S = 5.0
#: The same while a peer is expected to be heard for the first time, or with a new key.
IMPATIENT_S = 0.1
#: … while there was no handshake at all: everything else waits for it.
FIRST_HANDSHAKE_S = 0.05
#: … while no hub is heard, or while a direct path carries data, whose bytes are counted about each second.
WATCHFUL_S = 1.0
#: A peer that is new in the map, or somewhere else, is expected for so long: a hub reports where it sees it.
WATCH_S = 8.0

ReadEndpoints = Callable[[int, OverlayNetwork], Awaitable[tuple[Endpoint, ...]]]


class Reconciler:
    """Keeps one node's device.

    Args:
        endpoints: by which others may try to reach this port of WireGuard; None: nobody can.
    """

    def __init__(
        self,
        state: NodeState,
        device: Device,
        *,
        keys: KeyRotation,
        rekeying: Rekeying,
        paths: Paths,
        connection: CoordinatorConnection,
        progress: Progress,
        endpoints: ReadEndpoints | None,
    ) -> None:
        self._state = state
        self._device = device
        self._keys = keys
        self._paths = paths
        self._connection = connection
        self._progress = progress
        self._read_endpoints = endpoints
        self._endpoints_of_port = 0
        self._watch_until = 0.0
        #: The first map is compared with one that may be days old.
        self._has_map = False
        self._handshakes = Handshakes()
        self._rekeying = rekeying
        self._route_repairs = RouteRepairs()
        self._epoch_trials = EpochTrials(keys.tried)

    async def run(self) -> None:
        """Keep the device as it should be until cancelled."""
        self._progress.set("overlay", "run")
        failures = 0
        while True:
            self._state.woken.clear()
            try:
                await self._reconcile()
                failures = 0
            except MeshrayError as error:
                failures += 1
                log.error("%s", error)
                self._progress.fail("overlay", error)
            delay_s = min(self.interval_s, self._route_repairs.wait_s(boot_s()))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._state.woken.wait(), backoff_s(failures) if failures else delay_s)

    # ---- what happened

    def map_changed(self, before: MeshMap) -> None:
        """The map is another one than this."""
        mesh_map = self._state.map
        if replaced := new_keys(before, mesh_map):
            self._rekeying.replaced(replaced)
            self._paths.begin_handshakes()
        me = mesh_map.nodes.get(self._state.enrolment.node_id)
        expected = self._state.others if me is not None and HUB in me.roles else mesh_map.hubs
        if not self._has_map or any(_is_expected(before.nodes.get(node.id), node) for node in expected):
            self._watch_until = time.monotonic() + WATCH_S
        self._has_map = True
        self._state.wake()

    def endpoints_changed(self) -> None:
        """This node may have another address: it is looked for, and reported, at once."""
        self._endpoints_of_port = 0
        self._state.wake()

    def route_changed(self, culprit: str) -> None:
        """Another program changed the device or a route of the overlay.

        Args:
            culprit: which one, as far as the kernel knows.
        """
        self._route_repairs.seen(culprit)
        self._state.wake()

    # ---- what others ask

    def desired(self, observed: DeviceState | None) -> DeviceConfig:
        """The device as it should be now."""
        state, paths = self._state, self._paths
        return desired_device(
            state.me,
            state.map,
            self._keys.pair_keys,
            private_key=self._keys.private,
            listen_port=state.enrolment.listen_port,
            dial=paths.dial(observed),
            usable=paths.hubs.usable,
            path=paths.path,
            address=paths.address,
            known=observed.peers if observed is not None else (),
            mtus=paths.narrow,
        )

    def contested_routes(self) -> tuple[str, ...]:
        """What a user should know of routes that another program keeps changing, one sentence each."""
        return self._route_repairs.complaints(boot_s())

    @property
    def is_in_order(self) -> bool:
        """Whether the device is there and the hub is heard."""
        return self._state.device is not None and not self._paths.is_cut_off

    @property
    def interval_s(self) -> float:
        """How long the device is left alone where nothing wakes the loop, seconds."""
        if not self._state.overlay_up.is_set():
            return FIRST_HANDSHAKE_S
        if time.monotonic() < self._watch_until or self._rekeying.is_busy:
            return IMPATIENT_S
        if self._paths.is_cut_off or self._paths.any_direct:
            return WATCHFUL_S
        return RECONCILE_S

    async def remove_device(self) -> None:
        """Remove the device; it is made again at once."""
        await asyncio.to_thread(self._device.remove)
        self._state.device = None
        self._state.wake()

    async def repair_routes(self) -> list[Step]:
        """Put back the routes that are missing, however often that was in vain; returns what was done."""
        observed = await asyncio.to_thread(self._device.read)
        steps: list[Step] = [step for step in plan(observed, self.desired(observed)) if isinstance(step, SetRoute)]
        await asyncio.to_thread(self._device.apply, steps)
        self._route_repairs.forgive()
        self._state.wake()
        return steps

    # ---- inside

    async def _reconcile(self) -> None:
        observed = await self._read_reset()
        self._paths.hubs.look(observed)
        steps = self._route_repairs.due(plan(observed, self.desired(observed)), boot_s())
        for step in steps:
            log.info("%s: %s", self._device.name, step)
        if steps:
            await asyncio.to_thread(self._device.apply, steps)
            self._paths.made(step.peer for step in steps if isinstance(step, AddPeer))
            observed = await self._read()
        self._state.device = observed
        if observed is not None:
            await self._look_at(observed)
            self._paths.hubs.look(observed)
        if not self._paths.is_cut_off:
            self._state.overlay_up.set()

    async def _read_reset(self) -> DeviceState | None:
        """The device, after the resets that are due."""
        observed = await self._read()
        steps = self._paths.resets(observed) + self._rekeying.take(observed, boot_s())
        if not steps:
            return observed
        await asyncio.to_thread(self._device.apply, steps)
        return await self._read()

    async def _read(self) -> DeviceState | None:
        state = await asyncio.to_thread(self._device.read)
        return self._handshakes.timed(state, unix_s(), boot_s())

    async def _look_at(self, observed: DeviceState) -> None:
        if self._read_endpoints is not None and observed.listen_port != self._endpoints_of_port:
            self._state.endpoints = await self._read_endpoints(observed.listen_port, self._state.map.mesh.network)
            self._endpoints_of_port = observed.listen_port
        await self._connection.say_hello()
        is_connected = self._connection.is_open
        unsure = [node for node in self._state.map.nodes.values() if not (node.online and is_connected)]
        held = self._state.enrolment.mesh_secrets
        if self._epoch_trials.look(self._state.me, unsure, observed, boot_s(), held=held):
            self._state.wake()
        await self._paths.observe(observed)


def _is_expected(before: Node | None, now: Node) -> bool:
    """Whether a handshake with this node is to be expected soon: it is new, a new hub, online again or elsewhere."""
    return before is None or (now.online and not before.online) or _whereabouts(before) != _whereabouts(now)


def _whereabouts(node: Node) -> tuple[object, ...]:
    return node.endpoints, node.public_key, HUB in node.roles
