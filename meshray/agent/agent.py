"""The agent: one loop each for the coordinator's link, the device, the firewall and Ray.

    coordinator ──map──► desired device ──plan──► WireGuard
                   │                                 │ first handshake
                   └──head's Ray instance──► Ray ◄───┘

The deciding is done elsewhere (`desired`, `paths`, `wireguard.plan`, `report`); this is the shell that
reads, asks them, and acts. When the coordinator is away everything else goes on with the last map.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace

from meshray.agent.backoff import backoff_s
from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.connection.questions import Questions
from meshray.agent.dependencies import Dependencies
from meshray.agent.device.desired import desired_device, own_node
from meshray.agent.device.epoch_trials import EpochTrials
from meshray.agent.device.handshakes import Handshakes
from meshray.agent.device.key_rotation import KeyRotation
from meshray.agent.device.peer_resets import PeerResets
from meshray.agent.device.port_guard import log_firewall
from meshray.agent.device.rekeying import Rekeying, new_keys
from meshray.agent.device.route_repairs import RouteRepairs
from meshray.agent.paths.carrier import Carrier
from meshray.agent.paths.decision import PairPath
from meshray.agent.paths.hub_dialback import HubDialback
from meshray.agent.paths.hub_monitor import HubMonitor
from meshray.agent.paths.names import Address, Names
from meshray.agent.paths.observed_endpoints import ObservedEndpoints
from meshray.agent.paths.pairs import Pairs
from meshray.agent.paths.path_mtu import PathMtu
from meshray.agent.paths.rebinds import Rebinds
from meshray.agent.paths.sampler import Sampler
from meshray.agent.paths.silence_watch import SilenceWatch
from meshray.agent.paths.silent_nodes import SilentNodes
from meshray.agent.paths.throughput import ThroughputMeter
from meshray.agent.ray.gpus import GpuNotice
from meshray.agent.ray.offers import Offers
from meshray.agent.ray.table_keeper import TableKeeper
from meshray.agent.status.installation import Installation
from meshray.agent.status.progress import Progress
from meshray.agent.status.standing import Standing
from meshray.client.coordinator import Coordinator, RemovedFromMesh
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.clock import boot_s, unix_s
from meshray.linux.tasks import Tasks
from meshray.model import wire
from meshray.model.address import Endpoint
from meshray.model.amounts import counted
from meshray.model.endpoints import reachable_ip
from meshray.model.epochs import SharedSecrets
from meshray.model.keys import PrivateKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, Node
from meshray.model.question import Question
from meshray.node.enrolment import Enrolment
from meshray.node.identity import Identity
from meshray.node.membership import Membership
from meshray.node.pins import Pins
from meshray.node.state_writer import StateWriter
from meshray.wireguard.config import DeviceConfig, DeviceState
from meshray.wireguard.plan import AddPeer, plan

log = logging.getLogger(__name__)

#: How often the device is compared with what it should be when nothing tells of a change.
RECONCILE_S = 5.0
#: The same while no handshake with the hub is fresh: the next address must be tried soon.
IMPATIENT_S = 0.1
#: … and while there was none at all: everything else waits for it.
FIRST_HANDSHAKE_S = 0.05
#: A hub looks this long for the endpoints of nodes that are new in the map.
WATCH_S = 8.0


@dataclass(frozen=True)
class Hooks:
    """What the agent does with all that it knows; each is given the agent, which knows none of them.

    Attributes:
        hello: what this node says of itself to the coordinator, with the endpoints by which it may be reached.
        questions: answers what the coordinator asks for other nodes.
        services: what runs as long as the agent, by name.
    """

    hello: Callable[[Agent, Sequence[Endpoint]], Mapping[str, object]]
    questions: Callable[[Agent], Questions]
    services: Callable[[Agent], Mapping[str, Coroutine[object, object, None]]]


class Agent:
    """One node's agent. `run` returns after `stop` was called, or raises what made it end."""

    def __init__(
        self,
        home: Home,
        enrolment: Enrolment,
        private_key: PrivateKey,
        mesh_map: MeshMap,
        parts: Dependencies,
        *,
        hooks: Hooks,
    ) -> None:
        self.home = home
        self._hooks = hooks
        self.files = StateWriter(home)
        self.membership = Membership(home, enrolment, self.files)
        self.identity = Identity.of_node(home, enrolment.mesh_id)
        self.pins = Pins.load(home, enrolment.node_id, self.files)
        #: The map as the coordinator told it, and what of it is used.
        self.told = mesh_map
        self.map = self.pins.admit(mesh_map)
        self.parts = parts
        self.progress = Progress()
        self.device_state: DeviceState | None = None
        #: What the tunnel needs; it ends after Ray, which says goodbye through it.
        self._tunnel_tasks = Tasks()
        #: Apart from each other, so that the names of members do not delay those of hubs.
        self.names = Names(self._tunnel_tasks, self._reachable, self._name_found)
        self.hub_names = Names(
            self._tunnel_tasks, lambda ip: self._reachable(ip, loopback=True), lambda hub: self.wake(), at_once=4
        )
        self.hubs = HubMonitor(self.map, enrolment.node_id, lambda: self.enrolment.coordinators, self.hub_names)
        self.pairs = Pairs(self, parts.prober, self.names) if parts.prober is not None else None
        self.link = CoordinatorConnection(
            lambda: self.coordinator,
            lambda: self.told,
            on_map=self._new_map,
            on_message=self._told,
            hello=lambda: hooks.hello(self, self._endpoints),
            versions=lambda: parts.versions,
            progress=self.progress,
            membership=self.membership,
        )
        self.sampler = Sampler(ThroughputMeter())
        self.mtus = PathMtu(parts.prober, self.wake) if parts.prober is not None else None
        self.route_repairs = RouteRepairs()
        self.carrier = Carrier(
            enrolment.transport,
            lambda: replace(self.coordinator, endpoints=self.enrolment.coordinators),
            lambda: self.map.coordinator if self.map.coordinator and HUB in self.map.coordinator.roles else None,
            self.hubs,
            device=lambda: self.device_state,
            switched=self._dial_anew,
        )
        self.silence = SilenceWatch(self, parts.prober, self._silence_changed) if parts.prober is not None else None
        self.silent_nodes: SilentNodes | None = None
        if self.silence is not None:
            self.silent_nodes = SilentNodes(
                self.silence, self.link, parts.firewall, enrolment.node_id, lambda: self.map
            )
        self.standing = Standing()
        self.offers = Offers()
        self.ray_table: TableKeeper | None = None
        self._endpoints: tuple[Endpoint, ...] = ()
        self.endpoints_of_port = 0
        self._sightings = ObservedEndpoints()
        self.rebinds = Rebinds()
        self._watch_until = 0.0
        self.peer_resets = PeerResets()
        self._rekeying = Rekeying()
        #: What the coordinator said last that this node is to hold.
        self._shared: SharedSecrets | None = None
        self.installation = Installation(enrolment.trust_user_environment)
        self.gpus = GpuNotice()
        self._handshakes = Handshakes()
        self._outward = HubDialback()
        self.keys = KeyRotation(self, home, enrolment, private_key)
        self._epoch_trials = EpochTrials(self.keys.tried)
        self._questions = hooks.questions(self)
        self._wake = asyncio.Event()
        self.overlay_up = asyncio.Event()
        self.map_changed = asyncio.Event()
        self.tasks = Tasks()
        self._stopping = asyncio.Event()

    @property
    def enrolment(self) -> Enrolment:
        """Who this node is."""
        return self.membership.enrolment

    @property
    def me(self) -> Node:
        """This node in the map of the moment. Raises MeshrayError where it is not in it (any more)."""
        return own_node(self.enrolment, self.map)

    @property
    def coordinator(self) -> Coordinator:
        """Where the coordinator may be: the addresses that this node knows, and its overlay address as the last."""
        node = self.map.coordinator
        inside = (Endpoint(str(node.ip), self.enrolment.mesh_port),) if node and node.id != self.me.id else ()
        return Coordinator(
            (*self.enrolment.coordinators, *inside),
            bytes.fromhex(self.enrolment.fingerprint),
            self.enrolment.credential,
            self.told.mark,
            self.enrolment.ticket,
            self.membership.instance,
        )

    def stop(self) -> None:
        """Lets `run` take everything down and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Keeps the node as it should be until `stop`.

        Raises:
            RemovedFromMesh: the coordinator does not know this node any more; everything was taken down.
        """
        tasks = self.tasks
        if self.parts.coordinator is not None:
            tasks.start(self.parts.coordinator.run(), "coordinator")
        tasks.start(self.link.run(), "link")
        tasks.start(self.keys.run(), "key")
        self._tunnel_tasks.start(self._keep_device(), "device")
        if not self.is_hub:
            self._tunnel_tasks.start(self.carrier.run(self.parts.prober), "carrier")
        if self.parts.hub_endpoints is not None:
            tasks.start(self.parts.hub_endpoints.run(self.endpoints_changed), "public addresses")
        tasks.start(self.installation.look(self.overlay_up), "installation")
        for name, service in self._hooks.services(self).items():
            tasks.start(service, name)
        tasks.start(self._tunnel_tasks.until(self._stopping), "tunnel")
        try:
            await tasks.until(self._stopping)
            await self.link.say(self.membership.goodbye)  # so that nobody looks for what is wrong with this node
        except RemovedFromMesh:
            self.membership.taken_out()
            await self._take_down()
            raise
        except BaseException:
            await self._tunnel_tasks.close()
            raise
        finally:
            await tasks.close()
        await self._take_down()

    async def _take_down(self) -> None:
        log.info("going down")
        await self.tasks.close()
        if self.parts.ray is not None:
            await self.parts.ray.stop()
        await self._tunnel_tasks.close()
        if self.enrolment.ephemeral and not self.enrolment.taken_out:
            await self.membership.leave(self.coordinator, was_up=self.progress.up)
        if self.parts.prober is not None:
            self.parts.prober.close()
        if self.parts.firewall is not None:
            log_firewall(await asyncio.to_thread(self.parts.firewall.remove))
        await asyncio.to_thread(self.parts.device.remove)
        if self.parts.coordinator is not None:
            await self.parts.coordinator.stop()

    def _new_map(self, told: MeshMap) -> None:
        mesh_map = self.pins.admit(told)
        before, self.map, self.told = self.map, mesh_map, told
        if self.silence is not None:
            for node in mesh_map.nodes.values():
                self.silence.node_changed(before.nodes.get(node.id), node)
        self._silence_changed()
        self.standing.look(before, mesh_map)
        self.membership.keep_map(told)
        self.membership.learn(mesh_map)
        self._share()
        if replaced := new_keys(before, mesh_map):
            self._rekeying.replaced(replaced)
            self._begin_handshakes()
        self.keys.look()
        if self.pairs is not None:
            self._watch_until = time.monotonic() + WATCH_S
            for node in mesh_map.nodes.values():
                self.pairs.node_changed(before.nodes.get(node.id), node)
        self.names.keep(mesh_map.nodes)
        self.hubs.refresh(mesh_map)
        if self.parts.ray is not None and mesh_map.head is not None:
            me = mesh_map.nodes.get(self.enrolment.node_id)
            self.parts.ray.drained(me is not None and me.drained)
            self.parts.ray.head_instance(mesh_map.head.ray_instance)
        self.progress.set("coordinator", "ok", f"mesh {mesh_map.mesh.name}, {counted(len(mesh_map.nodes), 'node')}")
        self._wake.set()
        self.map_changed.set()
        self.map_changed = asyncio.Event()

    def _silence_changed(self) -> None:
        if self.silent_nodes is not None:
            self.silent_nodes.look()
        if self.ray_table is not None:
            self.ray_table.look()

    def is_direct(self, node: Node) -> bool:
        """Whether a direct path to this node carries data."""
        return self.pairs is not None and self.pairs.path(node).carries

    def rekeyed(self) -> None:
        """This node's device is to have another key."""
        self._rekeying.own_changed()
        self._begin_handshakes()

    def _begin_handshakes(self) -> None:
        self.hubs.begin_again()
        self.carrier.begin_again()
        self._wake.set()

    def _told(self, message: Mapping[str, object]) -> None:
        if self.pairs is not None and message.get("type") == "punch":
            self.pairs.punch(wire.text(message, "node", 64))
        elif self.pairs is not None and message.get("type") == "left":
            self.pairs.left(wire.text(message, "node", 64))
        elif message.get("type") == "secrets":
            self._shared = SharedSecrets.from_json(message)
            self._share()
        elif message.get("type") == "ask":
            self.tasks.start(self._answer(Question.from_json(message)), "answer")

    def _share(self) -> None:
        """Holds what the coordinator says that this node is to hold, as far as the map does not need more; it may come
        before the map that goes with it. The others learn of it with this node's hello."""
        if self._shared is None or not self.membership.share(self._shared, self.map):
            return
        self.keys.share(self.enrolment.mesh_secrets)
        if self.parts.ray is not None:
            self.parts.ray.hold_tokens(self.enrolment.ray_tokens)
        self.tasks.start(self.link.say_hello(), "hello")
        self._wake.set()

    async def _answer(self, question: Question) -> None:
        await self.link.say((await self._questions.answer(question)).to_json())

    def say(self, message: Mapping[str, object]) -> None:
        """Sends to the coordinator, where it is there."""
        self.tasks.start(self.link.say(message), "message")

    def tell_ray_instance(self, instance: str) -> None:
        """This node's Ray head has another instance now (empty: it is down); the others are told."""
        self.tasks.start(self.link.tell_ray_instance(instance), "ray instance")

    # ---- the device

    async def _keep_device(self) -> None:
        self.progress.set("overlay", "run")
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self._reconcile()
                failures = 0
            except MeshrayError as error:
                failures += 1
                log.error("%s", error)
                self.progress.fail("overlay", error)
            delay_s = min(self._reconcile_interval_s(), self.route_repairs.wait_s(boot_s()))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), backoff_s(failures) if failures else delay_s)

    def _reconcile_interval_s(self) -> float:
        if not self.overlay_up.is_set():
            return FIRST_HANDSHAKE_S
        if time.monotonic() < self._watch_until or self._rekeying.is_busy:
            return IMPATIENT_S
        if self.is_cut_off or (self.pairs is not None and self.pairs.any_direct):
            return 1.0
        return RECONCILE_S

    async def _reconcile(self) -> None:
        observed = await self._read_device()
        self.hubs.look(observed)
        steps = self.route_repairs.due(plan(observed, self.desired(observed)), boot_s())
        for step in steps:
            log.info("%s: %s", self.parts.device.name, step)
        if steps:
            await asyncio.to_thread(self.parts.device.apply, steps)
            if self.pairs is not None:
                self.pairs.made(step.peer for step in steps if isinstance(step, AddPeer))
            observed = await self._read()
        self.device_state = observed
        if observed is not None:
            await self._look_at(observed)
            self.hubs.look(observed)
        if not self.is_cut_off:
            self.overlay_up.set()

    def desired(self, observed: DeviceState | None) -> DeviceConfig:
        """The device as it should be now."""
        return desired_device(
            self.me,
            self.map,
            self.keys.pair_keys,
            private_key=self.keys.private,
            listen_port=self.enrolment.listen_port,
            dial=self._dial(observed),
            usable=self.hubs.usable,
            path=self.pairs.path if self.pairs is not None else lambda node: PairPath(),
            address=self.names.address,
            known=observed.peers if observed is not None else (),
            mtus=self.mtus.narrow if self.mtus is not None else None,
        )

    def _dial(self, observed: DeviceState | None) -> Mapping[str, Endpoint]:
        dial = dict(self.hubs.dial(observed))
        if self.is_hub:
            dial.update(self._outward.dial(self.map, self.me.id, observed, self.names.address))
        return dial

    def _reachable(self, ip: Address, *, loopback: bool = False) -> Address | None:
        return reachable_ip(ip, self.map.mesh.network, loopback=loopback)

    def _name_found(self, node_id: str) -> None:
        if self.pairs is not None:
            self.pairs.name_found(node_id)
        self.wake()

    async def _read_device(self) -> DeviceState | None:
        """The device, after what had to be nudged was nudged."""
        if self.pairs is not None:
            self.peer_resets.make_anew(self.pairs.take_remade())
            self.peer_resets.make_silent_anew(self.pairs.take_again())
        observed = await self._read()
        steps = self.peer_resets.take(observed, may_change_port=self.enrolment.listen_port == 0)
        steps += self._rekeying.take(observed, boot_s())
        if not steps:
            return observed
        await asyncio.to_thread(self.parts.device.apply, steps)
        return await self._read()

    async def _read(self) -> DeviceState | None:
        state = await asyncio.to_thread(self.parts.device.read)
        return self._handshakes.timed(state, unix_s(), boot_s())

    def _dial_anew(self, hub: Node) -> None:
        if not self.hubs.any_fresh:
            self.peer_resets.make_anew([hub.public_key])
        self._wake.set()

    async def _look_at(self, observed: DeviceState) -> None:
        if self.pairs is not None:
            self.pairs.observe(observed)
        await self._look_for_endpoints(observed.listen_port)
        await self.link.say_hello()
        unsure = [node for node in self.map.nodes.values() if not (node.online and self.link.is_open)]
        if self._epoch_trials.look(self.me, unsure, observed, boot_s(), held=self.enrolment.mesh_secrets):
            self._wake.set()
        if self.is_hub:
            self.rebinds.look(self.map.nodes.values(), observed, time.monotonic())
            for message in self._sightings.news(self.map.nodes.values(), observed, self.link.is_open):
                await self.link.say(message)

    async def _look_for_endpoints(self, port: int) -> None:
        if self.parts.endpoints is not None and port != self.endpoints_of_port:
            self._endpoints = await self.parts.endpoints(port, self.map.mesh.network)
            self.endpoints_of_port = port

    def endpoints_changed(self) -> None:
        """This node may have another address: it is looked for, and reported, at once."""
        self.endpoints_of_port = 0
        self._wake.set()

    async def use_coordinator(self, endpoint: Endpoint) -> None:
        """The coordinator is at this endpoint, as far as a user knows; it becomes the first that is tried."""
        self.membership.reached(endpoint)
        self.hubs.prefer(endpoint, self.map)
        self.carrier.network_changed()
        self._wake.set()
        await self.link.move_to(endpoint)

    def hubs_changed(self) -> None:
        """Another hub is the best one, or one does not answer any more."""
        self.tasks.start(self.link.say_hello(), "hello")
        self._wake.set()

    @property
    def is_cut_off(self) -> bool:
        """Whether this node needs a hub and hears none."""
        return not (self.is_hub or self.hubs.any_fresh)

    @property
    def is_hub(self) -> bool:
        """Whether this node forwards for others."""
        return HUB in self.me.roles

    def wake(self) -> None:
        """Compares the device with what it should be at once."""
        self._wake.set()
