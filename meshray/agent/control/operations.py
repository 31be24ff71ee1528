"""The operations of the agent for the command line; `meshray.protocol.control` has the requests and answers.

everyone who may open the socket:  status  ready  progress  env  ping  doctor  wireguard (without secrets)
root:                              api  coordinator  down  give_up  order  repair  rotate_key  wireguard (with secrets)
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping

from meshray.agent.agent import Agent
from meshray.agent.control.control_server import Operations as OperationMap
from meshray.agent.device.desired_device import PairKeys, desired_device
from meshray.agent.status.current_status import current_status, ray_table
from meshray.agent.status.readiness import readiness
from meshray.agent.status.snapshot import current_path, summary_of
from meshray.agent.status.startup_progress import Emit
from meshray.client.order import give_order
from meshray.errors import MeshrayError, UsageError
from meshray.model.address import Endpoint
from meshray.model.node import Node
from meshray.model.path import PathKind
from meshray.protocol.api import Gathered
from meshray.protocol.codec import convert
from meshray.protocol.connection import MAX_WAIT_S, ROTATE_KEY
from meshray.protocol.control import (
    CallCoordinator,
    Done,
    DriverEnvironment,
    Echo,
    FollowProgress,
    GetEnvironment,
    GetReadiness,
    GetStatus,
    GetWireGuard,
    GetWireGuardSecrets,
    GiveOrder,
    GiveUp,
    KeyRotated,
    OrderPart,
    OtherPath,
    Ping,
    PingDone,
    Readiness,
    Repair,
    Repaired,
    RotateKey,
    RunDoctor,
    TakeDown,
    Up,
    UseCoordinator,
    WireGuardFile,
)
from meshray.protocol.doctor import DoctorReport
from meshray.protocol.orders import OrderForm
from meshray.protocol.status import PathStatus, Status

#: The pause between two echoes of one `meshray ping`.
PING_INTERVAL_S = 0.5

ClientEnvironment = Callable[[], Mapping[str, str]]


class Operations:
    """The operations of one agent.

    Args:
        client_environment: returns the environment of `meshray run` and `meshray env`; raises if the node has no Ray.
    """

    def __init__(self, agent: Agent, client_environment: ClientEnvironment) -> None:
        self._agent = agent
        self._state = agent.state
        self._client_environment = client_environment

    def for_all_users(self) -> OperationMap:
        """Return the operations that answer questions and change nothing."""
        return {
            GetStatus: self._status,
            GetReadiness: self._ready,
            FollowProgress: self._progress,
            GetEnvironment: self._environment,
            Ping: self._ping,
            RunDoctor: self._doctor,
            GetWireGuard: self._wireguard,
        }

    def for_owner(self) -> OperationMap:
        """Return the operations that change something or reveal a secret."""
        return {
            CallCoordinator: self._call_coordinator,
            UseCoordinator: self._use_coordinator,
            TakeDown: self._take_down,
            GiveOrder: self._give_order,
            GiveUp: self._give_up,
            Repair: self._repair,
            RotateKey: self._rotate_key,
            GetWireGuardSecrets: self._wireguard_secrets,
        }

    async def _status(self, request: GetStatus, emit: Emit) -> Status:
        return await current_status(self._agent.sources)

    async def _ready(self, request: GetReadiness, emit: Emit) -> Readiness:
        return readiness(self._agent.sources, is_up=self._agent.progress.up)

    async def _progress(self, request: FollowProgress, emit: Emit) -> Up:
        was_up = self._agent.progress.up
        answer = await self._agent.progress.follow(emit)
        table = await ray_table(self._agent.sources) if was_up else None
        # The node may have come up days ago, with fewer nodes.
        return Up(summary=summary_of(self._agent.sources, table)) if table is not None else answer

    async def _environment(self, request: GetEnvironment, emit: Emit) -> DriverEnvironment:
        # It asks Ray's interpreter, which may take a while.
        environment = await asyncio.to_thread(self._client_environment)
        ray, forwards = self._agent.parts.ray, self._agent.parts.forwards
        found = ray.now.installation if ray is not None else None
        return DriverEnvironment(
            env=environment,
            user_uid=self._state.enrolment.user_uid,
            python=str(found.python) if found else "",
            programs=str(found.ray.parent) if found else "",
            activation=found.activation if found else {},
            ray_ports=self._state.map.ports_of(self._state.map.head).to_json(head=True),
            dashboard_here=forwards.urls().get("dashboard", "") if forwards is not None else "",
        )

    async def _ping(self, request: Ping, emit: Emit) -> PingDone:
        node = self._find(request.node)
        self._agent.paths.want(node)
        received = 0
        for seq in range(1, request.count + 1):
            rtt_ms = await self._round_trip(node)
            received += rtt_ms is not None
            await emit(Echo(seq, rtt_ms))
            if seq < request.count:
                await asyncio.sleep(PING_INTERVAL_S)
        path = current_path(self._agent.sources, node)
        return PingDone(
            sent=request.count, received=received, path=path, others=tuple(await self._other_paths(node, path))
        )

    async def _other_paths(self, node: Node, path: PathStatus) -> list[OtherPath]:
        """Return the paths that are not in use: the direct one with the reason, and the hubs with this node's leg."""
        paths: list[OtherPath] = []
        if path.kind == PathKind.HUB:
            paths.append(OtherPath(PathKind.DIRECT, reason=path.reason or "being tried"))
        for hub in self._state.map.hubs:
            if path.kind == PathKind.DIRECT and hub.id not in {node.id, self._state.me.id}:
                paths.append(OtherPath(PathKind.HUB, str(hub.name), await self._round_trip(hub)))
        return paths

    async def _doctor(self, request: RunDoctor, emit: Emit) -> DoctorReport:
        from meshray.agent.status.doctor_survey import survey_mesh
        from meshray.doctor.examine import examine

        named = self._state.map.find(request.node) if request.node else None
        if named is not None:
            self._agent.paths.want(named)
        facts = await survey_mesh(self._agent.sources, await ray_table(self._agent.sources))
        return DoctorReport(str(self._state.me.name), examine(facts, request.node or None))

    async def _wireguard(self, request: GetWireGuard, emit: Emit) -> WireGuardFile:
        return WireGuardFile(self._wg_quick(request.node, secrets=False))

    async def _wireguard_secrets(self, request: GetWireGuardSecrets, emit: Emit) -> WireGuardFile:
        return WireGuardFile(self._wg_quick(request.node, secrets=True))

    async def _call_coordinator(self, request: CallCoordinator, emit: Emit) -> Mapping[str, object]:
        return await self._state.coordinator.call(request.method, request.path, request.body)

    async def _repair(self, request: Repair, emit: Emit) -> Repaired:
        from meshray.agent.repair_actions import run_repair

        return Repaired(await run_repair(request.key, self._agent.parts, self._agent.reconciler))

    async def _rotate_key(self, request: RotateKey, emit: Emit) -> KeyRotated:
        agent = self._agent
        node = self._find(request.node) if request.node else self._state.me
        if node.id == self._state.me.id:
            return convert({"node": str(node.name), **await agent.keys.rotate()}, KeyRotated)
        body = {"nodes": [node.name], "op": ROTATE_KEY, "timeout_s": MAX_WAIT_S}
        gathered = convert(await self._state.coordinator.call("POST", "/v1/ask", body), Gathered)
        answer = gathered.answers.get(node.name)
        if answer is not None:
            return convert({"node": str(node.name), **answer}, KeyRotated)
        why = gathered.silent.get(node.name, "it has no agent: its file contains its key")
        raise MeshrayError(
            "key_not_changed", f"the key of {node.name} was not changed: {why}", hint=f"on {node.name}: meshray status"
        )

    async def _give_order(self, request: GiveOrder, emit: Emit) -> Done:
        form = OrderForm(str(self._find(request.node).name), request.order, request.arguments)
        async for data in give_order(self._state.coordinator, form):
            await emit(OrderPart(base64.b64encode(data).decode()))
        return Done()

    async def _use_coordinator(self, request: UseCoordinator, emit: Emit) -> Done:
        await self._agent.use_coordinator(Endpoint.parse(request.endpoint))
        return Done()

    async def _take_down(self, request: TakeDown, emit: Emit) -> Done:
        self._agent.stop()
        return Done()

    async def _give_up(self, request: GiveUp, emit: Emit) -> Done:
        self._state.membership.given_up = True
        return Done()

    def _find(self, name_or_ip: str) -> Node:
        """Return the node with this name or overlay address. Raises UsageError if there is none."""
        node = self._state.map.find(name_or_ip)
        if node is None:
            raise UsageError("no_such_node", f"the mesh has no node {name_or_ip[:80]!r}", hint="meshray node list")
        return node

    async def _round_trip(self, node: Node, timeout_s: float = 2.0) -> float | None:
        prober = self._agent.parts.prober
        return await prober.probe(node.ip, timeout_s) if prober is not None else None

    def _wg_quick(self, name: str, *, secrets: bool) -> str:
        from meshray.wireguard.conf import render

        node = self._find(name)
        agent = self._agent
        is_own = node.id == self._state.me.id
        if secrets and not is_own:
            raise MeshrayError(
                "key_elsewhere", f"only {node.name} itself has its private key", hint=f"run it on {node.name}"
            )
        published_port = node.endpoints[0].port if node.endpoints else 0
        config = desired_device(
            node,
            self._state.map,
            PairKeys(self._state.enrolment.mesh_secrets, node.public_key),
            private_key=agent.keys.private,
            listen_port=self._state.enrolment.listen_port if is_own else published_port,
            dial={},
        )
        names = {other.public_key: str(other.name) for other in self._state.map.nodes.values()}
        endpoints = {hub.public_key: hub.endpoints[0] for hub in self._state.map.hubs if hub.endpoints}
        return render(config, names, secrets=secrets, endpoints=endpoints)
