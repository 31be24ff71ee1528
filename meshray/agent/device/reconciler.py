"""The loop that compares the WireGuard device with its desired state and takes the steps between them.

    read ──► resets, new keys ──► plan(observed, desired) ──► apply ──► read again ──► what others learn from it

It runs when it is woken, often while a peer is expected to answer, and otherwise at intervals. Decisions are made
elsewhere (`desired`, `paths`, `wireguard.plan`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from meshray.agent.backoff import backoff_s
from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.device.desired_device import desired_device
from meshray.agent.device.epoch_trials import EpochTrials
from meshray.agent.device.handshakes import Handshakes
from meshray.agent.device.key_rotation import KeyRotation
from meshray.agent.device.rekeying import Rekeying, new_keys
from meshray.agent.device.route_repairs import RouteRepairs
from meshray.agent.paths.paths import Paths
from meshray.agent.state import NodeState
from meshray.agent.status.startup_progress import Progress
from meshray.errors import MeshrayError
from meshray.linux.clock import boot_s, unix_s
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, Node
from meshray.wireguard.config import DeviceConfig, DeviceState
from meshray.wireguard.device import Device
from meshray.wireguard.plan import AddPeer, SetRoute, Step, plan

log = logging.getLogger(__name__)

#: The interval at which the device is reconciled when nothing is known to have changed, seconds.
RECONCILE_S = 5.0
#: The interval while a peer is expected to answer for the first time, or with a new key.
EXPECTING_S = 0.1
#: The interval before the first handshake, for which everything else waits.
FIRST_HANDSHAKE_S = 0.05
#: The interval while no hub answers, or while a direct path carries data, whose bytes are counted about each second.
WATCHFUL_S = 1.0
#: Reading and reporting a peer takes about 50 µs: a hub of 1,000 peers does so every five seconds.
WATCHFUL_PER_PEER_S = 0.005
#: A peer that is new in the map, or has moved, is expected for this long: a hub reports its observed endpoint.
EXPECT_S = 8.0
#: Most peers answer within a second: the interval grows by this share of the time since the last change.
EXPECTING_SHARE = 0.1
#: To read and compare the device takes 0.03 ms for each peer, so this bounds it to a tenth of a core, seconds.
EXPECTING_PER_PEER_S = 0.0003

ReadEndpoints = Callable[[int, OverlayNetwork], Awaitable[tuple[Endpoint, ...]]]


class Reconciler:
    """The reconciler of one node's device.

    Args:
        endpoints: the endpoints at which others may reach this WireGuard port; None: they cannot.
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
        self._expecting_until = 0.0
        #: The first map is compared with one that may be days old.
        self._has_map = False
        self._handshakes = Handshakes()
        self._rekeying = rekeying
        self._route_repairs = RouteRepairs()
        self._epoch_trials = EpochTrials(keys.tried)

    async def run(self) -> None:
        """Maintain the desired state of the device until cancelled."""
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

    # ---- events

    def map_changed(self, before: MeshMap) -> None:
        """Handle a new map; the argument is the previous one."""
        mesh_map = self._state.map
        if replaced := new_keys(before, mesh_map):
            self._rekeying.replaced(replaced)
            self._paths.begin_handshakes()
        me = mesh_map.nodes.get(self._state.enrolment.node_id)
        expected = self._state.others if me is not None and HUB in me.roles else mesh_map.hubs
        if not self._has_map or any(_is_expected(before.nodes.get(node.id), node) for node in expected):
            self._expecting_until = time.monotonic() + EXPECT_S
        self._has_map = True
        self._state.wake()

    def endpoints_changed(self) -> None:
        """Find this node's endpoints again and report them at once, because they may have changed."""
        self._endpoints_of_port = 0
        self._state.wake()

    def route_changed(self, culprit: str) -> None:
        """Handle a change of the device or of an overlay route by another program.

        Args:
            culprit: that program, as far as the kernel knows.
        """
        self._route_repairs.record_culprit(culprit)
        self._state.wake()

    # ---- queries

    def desired(self, observed: DeviceState | None) -> DeviceConfig:
        """Return the current desired state of the device."""
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
        """Return a sentence for each route that another program keeps changing, for the user."""
        return self._route_repairs.complaints(boot_s())

    @property
    def is_in_order(self) -> bool:
        """Whether the device exists and a hub answers."""
        return self._state.device is not None and not self._paths.is_cut_off

    @property
    def interval_s(self) -> float:
        """The pause of the loop if nothing wakes it, seconds."""
        if not self._state.overlay_up.is_set():
            return FIRST_HANDSHAKE_S
        peers = len(self._state.device.peers) if self._state.device is not None else 0
        expected_s = self._expecting_until - time.monotonic()
        if expected_s > 0 or self._rekeying.is_busy:
            since_s = 0.0 if self._rekeying.is_busy else EXPECT_S - expected_s
            return max(EXPECTING_S, EXPECTING_SHARE * since_s, EXPECTING_PER_PEER_S * peers)
        if self._paths.is_cut_off:
            return WATCHFUL_S
        if self._paths.any_direct:
            return min(RECONCILE_S, max(WATCHFUL_S, WATCHFUL_PER_PEER_S * peers))
        return RECONCILE_S

    async def remove_device(self) -> None:
        """Remove the device; it is created again at once."""
        await asyncio.to_thread(self._device.remove)
        self._state.device = None
        self._state.wake()

    async def repair_routes(self) -> list[Step]:
        """Restore the missing routes, however often that failed before; return what was done."""
        observed = await asyncio.to_thread(self._device.read)
        steps: list[Step] = [step for step in plan(observed, self.desired(observed)) if isinstance(step, SetRoute)]
        await asyncio.to_thread(self._device.apply, steps)
        self._route_repairs.reset()
        self._state.wake()
        return steps

    # ---- implementation

    async def _reconcile(self) -> None:
        observed = await self._read_reset()
        self._paths.hubs.observe(observed)
        steps = self._route_repairs.due(plan(observed, self.desired(observed)), boot_s())
        for step in steps:
            log.info("%s: %s", self._device.name, step)
        if steps:
            await asyncio.to_thread(self._device.apply, steps)
            self._paths.peers_added(step.peer for step in steps if isinstance(step, AddPeer))
            observed = await self._read()
        self._state.device = observed
        if observed is not None:
            await self._process(observed)
            self._paths.hubs.observe(observed)
        if not self._paths.is_cut_off:
            self._state.overlay_up.set()

    async def _read_reset(self) -> DeviceState | None:
        """Return the device after the resets that are due."""
        observed = await self._read()
        steps = self._paths.resets(observed) + self._rekeying.take(observed, boot_s())
        if not steps:
            return observed
        await asyncio.to_thread(self._device.apply, steps)
        return await self._read()

    async def _read(self) -> DeviceState | None:
        state = await asyncio.to_thread(self._device.read)
        return self._handshakes.timed(state, unix_s(), boot_s())

    async def _process(self, observed: DeviceState) -> None:
        if self._read_endpoints is not None and observed.listen_port != self._endpoints_of_port:
            self._state.endpoints = await self._read_endpoints(observed.listen_port, self._state.map.mesh.network)
            self._endpoints_of_port = observed.listen_port
        await self._connection.send_hello()
        is_connected = self._connection.is_open
        uncertain = [node for node in self._state.map.nodes.values() if not (node.online and is_connected)]
        held = self._state.enrolment.mesh_secrets
        if self._epoch_trials.choose(self._state.me, uncertain, observed, boot_s(), held=held):
            self._state.wake()
        await self._paths.observe(observed)


def _is_expected(before: Node | None, now: Node) -> bool:
    """Return whether a handshake with this node is expected soon: it is new, a new hub, online again, or has moved."""
    return before is None or (now.online and not before.online) or _location(before) != _location(now)


def _location(node: Node) -> tuple[object, ...]:
    return node.endpoints, node.public_key, HUB in node.roles
