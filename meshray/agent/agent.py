"""The agent of one node: it creates its parts, runs them and stops them.

    coordinator ──map──► state ──► reconciler ──► WireGuard
                           │                        │ first handshake
                           ├──► paths               ▼
                           └──head's instance──► startup ──► firewall, Ray

Without the coordinator everything else continues with the last map.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace

from meshray import __version__
from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.connection.hello import hello_of
from meshray.agent.connection.order_runner import OrderRunner
from meshray.agent.connection.questions import Questions
from meshray.agent.dependencies import Dependencies
from meshray.agent.device.key_rotation import KeyRotation
from meshray.agent.device.port_guard import log_firewall
from meshray.agent.device.reconciler import Reconciler
from meshray.agent.device.rekeying import Rekeying
from meshray.agent.metrics.metrics_server import MetricsServer
from meshray.agent.paths.paths import Paths
from meshray.agent.ray.last_resources import LastResources
from meshray.agent.ray.table_keeper import TableKeeper
from meshray.agent.remote_orders import RemoteOrders
from meshray.agent.roaming import follow_device, follow_network
from meshray.agent.startup import Startup
from meshray.agent.state import NodeState
from meshray.agent.status.current_status import current_status
from meshray.agent.status.installation import check_installation
from meshray.agent.status.path_report import PathReporter
from meshray.agent.status.snapshot import Sources
from meshray.agent.status.startup_progress import Progress
from meshray.agent.status.used_paths import UsedPaths
from meshray.agent.upgrade import Upgrades
from meshray.client.coordinator import RemovedFromMesh
from meshray.errors import RefusedError
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.model.amounts import counted
from meshray.model.epochs import SharedSecrets
from meshray.model.keys import PrivateKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import Versions
from meshray.protocol.codec import to_json
from meshray.protocol.connection import (
    ROTATE_KEY,
    STATUS,
    SURVEY,
    UPGRADE,
    Ask,
    CancelOrder,
    FromCoordinator,
    Hello,
    Left,
    Order,
    OrderCredit,
    Punch,
    Secrets,
)
from meshray.protocol.orders import REMOTE_REFUSED
from meshray.protocol.orders import UPGRADE as UPGRADE_ORDER
from meshray.raynode.versions import RayInstallation

log = logging.getLogger(__name__)


class RestartRequested(Exception):
    """The agent should end without taking the node down, and start again."""


class Agent:
    """The agent of one node. `run` returns after `stop` was called, or raises the error that ended it."""

    def __init__(self, state: NodeState, private_key: PrivateKey, parts: Dependencies) -> None:
        self.state = state
        self.parts = parts
        self.progress = Progress()
        self.tasks = Tasks()
        #: The tasks that the tunnel needs. They end after Ray, which signs off through the tunnel.
        self._tunnel_tasks = Tasks()
        self._stopping, self._restarting = asyncio.Event(), asyncio.Event()
        #: The last epochs and secrets that the coordinator assigned to this node.
        self._shared: SharedSecrets | None = None
        self.connection = CoordinatorConnection(
            lambda: state.coordinator,
            lambda: state.published_map,
            on_map=self._take_map,
            on_message=self._handle_message,
            hello=self._hello,
            progress=self.progress,
            membership=state.membership,
        )
        last_resources = LastResources()
        self._ray_table = TableKeeper(lambda: state.map, last_resources)
        self.paths = Paths(
            state,
            parts.prober,
            parts.firewall,
            self.connection,
            traffic=parts.traffic,
            tasks=self.tasks,
            tunnel_tasks=self._tunnel_tasks,
            silence_changed=self._ray_table.check_soon,
        )
        rekeying = Rekeying()
        self.keys = KeyRotation(state, private_key, self.paths, rekeying)
        self.reconciler = Reconciler(
            state,
            parts.device,
            keys=self.keys,
            rekeying=rekeying,
            paths=self.paths,
            connection=self.connection,
            progress=self.progress,
            endpoints=parts.endpoints,
        )
        self.sources = Sources(state, parts, self.connection, self.paths, self.reconciler, last_resources)
        self._startup = Startup(self.sources, self.progress, self.tasks, self._ray_table)
        self._reporter = PathReporter(
            self.sources, UsedPaths(), lambda: self.keys.since, self._startup.listening_sockets
        )
        self._metrics = MetricsServer(self.sources, UsedPaths())
        self._upgrades = upgrades = Upgrades(self.sources, self.progress, self.restart)
        self._questions = Questions(
            {
                SURVEY: self._survey,
                ROTATE_KEY: self._rotate_key,
                STATUS: self._status,
                UPGRADE: upgrades.report,
            }
        )
        self.orders = OrderRunner(
            {
                **RemoteOrders(state.home, parts, self.reconciler, self.restart).operations,
                UPGRADE_ORDER: upgrades.upgrade,
            },
            self.connection.send,
            lambda: self.connection.opened if self.connection.is_open else 0,
            is_refused=state.enrolment.no_remote,
        )

    def stop(self) -> None:
        """Make `run` stop all parts and return."""
        self._stopping.set()

    def restart(self) -> None:
        """Make `run` raise RestartRequested and leave the tunnel, Ray and the coordinator running."""
        self._restarting.set()

    async def run(self) -> None:
        """Maintain the node's desired state until `stop`.

        Raises:
            RestartRequested: `restart` was called.
            RemovedFromMesh: the coordinator no longer knows this node; everything was stopped.
        """
        self._start()
        try:
            await self.tasks.until(self._stopping)
            # Other nodes must not look for a fault of this node.
            await self.connection.send(self.state.membership.goodbye)
        except RemovedFromMesh:
            self.state.membership.set_removed()
            await self._take_down()
            raise
        except BaseException:
            await self._tunnel_tasks.close()
            raise
        finally:
            await self.tasks.close()
            await self.state.files.flush()
        await self._take_down()

    def _start(self) -> None:
        tasks, parts, state = self.tasks, self.parts, self.state
        if parts.coordinator is not None:
            tasks.start(parts.coordinator.run(), "coordinator")
        tasks.start(self.connection.run(), "connection")
        tasks.start(self.keys.run(), "key")
        self._tunnel_tasks.start(self.reconciler.run(), "device")
        if not state.is_hub:
            self._tunnel_tasks.start(self.paths.carrier.run(parts.prober), "carrier")
        if parts.hub_endpoints is not None:
            tasks.start(parts.hub_endpoints.run(self.reconciler.endpoints_changed), "public addresses")
        trusted = state.enrolment.trust_user_environment
        tasks.start(check_installation(state.overlay_up, trusted=trusted), "installation")
        tasks.start(state.files.run(), "state files")
        tasks.start(self._startup.run(), "startup")
        tasks.start(self._reporter.run(), "path reports")
        tasks.start(self._metrics.run(), "metrics")
        tasks.start(self._until_restarting(), "restart")
        tasks.start(self._upgrades.watch_trial(), "trial of a version")
        if parts.network_changes is not None:
            changes = parts.network_changes()
            follow = follow_network(
                changes, state, parts, paths=self.paths, reconciler=self.reconciler, connection=self.connection
            )
            tasks.start(follow, "network")
        if parts.device_changes is not None:
            device_changes = parts.device_changes(parts.device.name, state.map.mesh.network.cidr)
            tasks.start(follow_device(device_changes, self.reconciler), "device monitor")
        tasks.start(self._tunnel_tasks.until(self._stopping), "tunnel")

    async def _take_down(self) -> None:
        log.info("going down")
        state, parts = self.state, self.parts
        await self.tasks.close()
        if parts.ray is not None:
            await parts.ray.stop()
        await self._tunnel_tasks.close()
        if state.enrolment.ephemeral and not state.enrolment.taken_out:
            await state.membership.leave(state.coordinator, was_up=self.progress.up)
        if parts.prober is not None:
            parts.prober.close()
        if parts.firewall is not None:
            log_firewall(await asyncio.to_thread(parts.firewall.remove))
        await asyncio.to_thread(parts.device.remove)
        if parts.coordinator is not None:
            await parts.coordinator.stop()

    # ---- messages of the coordinator

    def _take_map(self, published: MeshMap) -> None:
        before, mesh_map, ray = self.state.take_map(published), self.state.map, self.parts.ray
        self.sources.state_times.record(before, mesh_map)
        self._share()
        self.keys.check_map()
        self.paths.map_changed(before)
        self.reconciler.map_changed(before)
        if ray is not None and mesh_map.head is not None:
            me = mesh_map.nodes.get(self.state.enrolment.node_id)
            ray.drained(me is not None and me.drained)
            ray.head_at(mesh_map.head.ip)
            ray.head_instance(mesh_map.head.ray_instance)
        self.progress.set("coordinator", "ok", f"mesh {mesh_map.mesh.name}, {counted(len(mesh_map.nodes), 'node')}")

    def _handle_message(self, message: FromCoordinator) -> None:
        pairs = self.paths.pairs
        match message:
            case Punch(node) if pairs is not None:
                pairs.punch(node)
            case Left(node) if pairs is not None:
                pairs.left(node)
            case Secrets():
                self._shared = SharedSecrets.of(message)
                self._share()
            case Ask():
                self.tasks.start(self._answer(message), "answer")
            case Order():
                self.tasks.start(self.orders.carry_out(message), "order")
            case OrderCredit():
                self.orders.add_credit(message)
            case CancelOrder():
                self.orders.cancel(message)

    def _share(self) -> None:
        """Hold the secrets that the coordinator assigns, if the map needs no newer ones.

        They may arrive before the map that uses them. The other nodes learn of them with this node's hello.
        """
        if self._shared is None or not self.state.membership.store_secrets(self._shared, self.state.map):
            return
        self.keys.hold_secrets(self.state.enrolment.mesh_secrets)
        if self.parts.ray is not None:
            self.parts.ray.hold_tokens(self.state.enrolment.ray_tokens)
        self._send_hello()
        self.state.wake()

    async def _answer(self, question: Ask) -> None:
        await self.connection.send((await self._questions.answer(question)).bounded())

    async def _until_restarting(self) -> None:
        await self._restarting.wait()
        log.info("restarting")
        raise RestartRequested

    async def _rotate_key(self) -> Mapping[str, object]:
        if self.state.enrolment.no_remote:
            raise RefusedError(REMOTE_REFUSED, "it accepts no remote orders: it joined with --no-remote")
        return await self.keys.rotate()

    async def _survey(self) -> Mapping[str, object]:
        # This import waits for the first question: the checks are large, and most nodes are never asked.
        from meshray.agent.status.doctor_survey import survey
        from meshray.doctor.facts import encode

        _, facts = await survey(self.sources, None)
        return encode(facts)

    async def _status(self) -> Mapping[str, object]:
        return to_json(await current_status(self.sources))

    # ---- reports to the coordinator

    def _hello(self) -> Hello:
        return hello_of(
            self.state,
            self.keys.private.public(),
            self.parts.versions,
            hubs=self.paths.hubs.usable,
            outside=self.connection.outside,
            problems=self.parts.firewall.problems() if self.parts.firewall is not None else (),
        )

    def _send_hello(self) -> None:
        self.tasks.start(self.connection.send_hello(), "hello")

    def report_ray_instance(self, instance: str) -> None:
        """Report to the other nodes that this node's Ray head has another instance; empty: it is down."""
        self.tasks.start(self.connection.report_ray_instance(instance), "ray instance")

    def use_ray(self, found: RayInstallation) -> None:
        """Use another Ray installation for this node from now on, and report its versions to the others."""
        self.state.membership.set_ray_path(str(found.ray))
        self.use_versions(found.versions)

    def use_versions(self, found: Versions) -> None:
        """Report to the others that this node's Ray has these versions."""
        self.parts.versions = replace(found, meshray=__version__, build=self.parts.versions.build)
        self._send_hello()

    async def use_coordinator(self, endpoint: Endpoint) -> None:
        """Use this endpoint for the coordinator, because a user gave it; it is tried first."""
        self.state.membership.prefer_coordinator(endpoint)
        self.paths.prefer(endpoint)
        await self.connection.move_to(endpoint)
