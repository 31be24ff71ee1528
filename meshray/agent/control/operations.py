"""What the command line may ask of the agent; see `meshray.client.agent` for the way.

everybody who may open the socket:  status  progress  env  ping  doctor  wireguard (without secrets)
root:                               api  coordinator  down  give_up  repair  rotate_key  wireguard (with secrets)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address

from meshray.agent.agent import Agent
from meshray.agent.control.control_server import Operation
from meshray.agent.device.desired import PairKeys, desired_device
from meshray.agent.status.progress import Emit
from meshray.agent.status.report import build_status, path_to
from meshray.agent.status.snapshot import snapshot_of, summary_of, with_machine
from meshray.errors import MeshrayError, UsageError
from meshray.model import wire
from meshray.model.address import Endpoint
from meshray.model.node import Node
from meshray.model.path import PathKind
from meshray.model.ray_state import RayState
from meshray.protocol.codec import to_json
from meshray.protocol.connection import MAX_WAIT_S, ROTATE_KEY
from meshray.protocol.status import Path

#: Between two echoes of one `meshray ping`.
PING_INTERVAL_S = 0.5
_MAX_PINGS = 1000

ClientEnvironment = Callable[[], Mapping[str, str]]


class Operations:
    """The operations of one agent.

    Args:
        client_environment: what `meshray run` and `meshray env` give; raises where the node has no Ray.
    """

    def __init__(self, agent: Agent, client_environment: ClientEnvironment) -> None:
        self._agent = agent
        self._state = agent.state
        self._client_environment = client_environment

    def for_everybody(self) -> dict[str, Operation]:
        """What tells and changes nothing."""
        return {
            "status": self._status,
            "progress": self._progress,
            "env": self._env,
            "ping": self._ping,
            "doctor": self._doctor,
            "wireguard": self._wireguard_without_secrets,
        }

    def for_owner(self) -> dict[str, Operation]:
        """What changes something or shows a secret."""
        return {
            "api": self._api,
            "coordinator": self._coordinator,
            "down": self._down,
            "give_up": self._give_up,
            "repair": self._repair,
            "rotate_key": self._rotate_key,
            "wireguard_secrets": self._wireguard_with_secrets,
        }

    async def _status(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        sources = self._agent.sources
        return to_json(build_status(await with_machine(sources, snapshot_of(sources, await self._ray_table()))))

    async def _progress(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        was_up = self._agent.progress.up
        answer = await self._agent.progress.follow(emit)
        table = await self._ray_table() if was_up else None
        # It may have come up days ago, with fewer nodes.
        return {**answer, "summary": summary_of(self._agent.sources, table)} if table is not None else answer

    async def _env(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        # It asks Ray's interpreter, which may take its time.
        environment = await asyncio.to_thread(self._client_environment)
        ray, forwards, uid = self._agent.parts.ray, self._agent.parts.forwards, self._state.enrolment.user_uid
        answer: dict[str, object] = {
            "env": dict(environment),
            "person_uid": uid,
            "python": "",
            "programs": "",
            "activation": {},
            "ray_ports": self._state.map.ports_of(self._state.map.head).to_json(head=True),
            "dashboard_here": forwards.urls().get("dashboard", "") if forwards is not None else "",
        }
        if ray is not None:
            found = ray.now.installation
            answer |= {
                "python": str(found.python),
                "programs": str(found.ray.parent),
                "activation": found.activation,
            }
        return answer

    async def _ping(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        node = self._find(wire.text(request, "node", 63))
        count = wire.number(request, "count", 1, _MAX_PINGS, 4)
        received = 0
        for seq in range(1, count + 1):
            rtt_ms = await self._round_trip(node)
            received += rtt_ms is not None
            await emit({"seq": seq, "rtt_ms": rtt_ms})
            if seq < count:
                await asyncio.sleep(PING_INTERVAL_S)
        path = path_to(snapshot_of(self._agent.sources, None), node)
        return {
            "done": True,
            "sent": count,
            "received": received,
            "path": to_json(path),
            "others": await self._other_ways(node, path),
        }

    async def _other_ways(self, node: Node, path: Path) -> list[Mapping[str, object]]:
        """The ways that are not in use: the direct one with why it is not, the hubs with this node's own leg."""
        ways: list[Mapping[str, object]] = []
        if path.kind == PathKind.HUB:
            ways.append({"kind": PathKind.DIRECT.value, "rtt_ms": None, "reason": path.reason or "being tried"})
        for hub in self._state.map.hubs:
            if path.kind == PathKind.DIRECT and hub.id not in {node.id, self._state.me.id}:
                ways.append(
                    {"kind": PathKind.HUB.value, "to": hub.name, "rtt_ms": await self._round_trip(hub), "reason": ""}
                )
        return ways

    async def _doctor(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        from meshray.agent.status.survey import whole_mesh
        from meshray.doctor.examine import examine

        facts = await whole_mesh(self._agent.sources, await self._ray_table())
        checks = examine(facts, wire.text(request, "node", 63, "") or None)
        return {"self": self._state.me.name, "checks": [check.to_json() for check in checks]}

    async def _wireguard_without_secrets(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        return {"text": self._wireguard(request, secrets=False)}

    async def _wireguard_with_secrets(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        return {"text": self._wireguard(request, secrets=True)}

    async def _api(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        method, path = wire.text(request, "method", 8), wire.text(request, "path", 256)
        body = request.get("body")
        return await self._state.coordinator.call(method, path, body if isinstance(body, dict) else None)

    async def _repair(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        from meshray.agent.repairs import carry_out

        return {"done": await carry_out(wire.text(request, "key", 40), self._agent.parts, self._agent.reconciler)}

    async def _rotate_key(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        agent, name = self._agent, wire.text(request, "node", 63, "")
        node = self._find(name) if name else self._state.me
        if node.id == self._state.me.id:
            return {"node": node.name, **await agent.keys.rotate()}
        body = {"nodes": [node.name], "op": ROTATE_KEY, "timeout_s": MAX_WAIT_S}
        said = await self._state.coordinator.call("POST", "/v1/ask", body)
        answer = wire.mapping(said, "answers").get(node.name)
        if isinstance(answer, dict):
            return {"node": node.name, **answer}
        why = wire.mapping(said, "silent").get(node.name, "it has no agent: its file names its key")
        raise MeshrayError(
            "key_not_changed", f"the key of {node.name} was not changed: {why}", hint=f"on {node.name}: meshray status"
        )

    async def _coordinator(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        await self._agent.use_coordinator(Endpoint.parse(wire.text(request, "endpoint", 300)))
        return {}

    async def _down(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        self._agent.stop()
        return {}

    async def _give_up(self, request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
        self._state.membership.given_up = True
        return {}

    async def _ray_table(self) -> Mapping[IPv4Address, RayState] | None:
        parts, mesh_map = self._agent.parts, self._state.map
        head, dashboard = mesh_map.head, mesh_map.dashboard
        if parts.ray is not None:
            return await parts.ray.node_table(with_use=True)
        if parts.ray_table is None or head is None or dashboard is None or not head.versions.ray:
            return None
        with contextlib.suppress(MeshrayError):
            return await parts.ray_table(dashboard)
        return None

    def _find(self, who: str) -> Node:
        """The node of this name or overlay address. Raises UsageError where there is none."""
        node = self._state.map.find(who)
        if node is None:
            raise UsageError("no_such_node", f"the mesh has no node {who[:80]!r}", hint="meshray node list")
        return node

    async def _round_trip(self, node: Node, timeout_s: float = 2.0) -> float | None:
        prober = self._agent.parts.prober
        return await prober.probe(node.ip, timeout_s) if prober is not None else None

    def _wireguard(self, request: Mapping[str, object], *, secrets: bool) -> str:
        from meshray.wireguard.conf import render

        node = self._find(wire.text(request, "node", 63))
        agent = self._agent
        own = node.id == self._state.me.id
        if secrets and not own:
            raise MeshrayError(
                "key_elsewhere", f"only {node.name} itself has its private key", hint=f"run it on {node.name}"
            )
        config = desired_device(
            node,
            self._state.map,
            PairKeys(self._state.enrolment.mesh_secrets, node.public_key),
            private_key=agent.keys.private,
            listen_port=self._state.enrolment.listen_port if own else node.endpoints[0].port if node.endpoints else 0,
            dial={},
        )
        names = {other.public_key: str(other.name) for other in self._state.map.nodes.values()}
        endpoints = {hub.public_key: hub.endpoints[0] for hub in self._state.map.hubs if hub.endpoints}
        return render(config, names, secrets=secrets, endpoints=endpoints)
