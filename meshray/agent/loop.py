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
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from meshray.agent.backoff import backoff_s
from meshray.agent.cache import save_map
from meshray.agent.client import Coordinator, RemovedFromMesh
from meshray.agent.desired import PairKeys, desired_device, own_node
from meshray.agent.enrolment import Enrolment
from meshray.agent.hubs import HubChoice, is_fresh
from meshray.agent.link import LinkKeeper
from meshray.agent.parts import FirewallPart, Parts, RayPart
from meshray.agent.prober import Measured, Prober
from meshray.agent.progress import Progress
from meshray.agent.report import View, path_to
from meshray.errors import MeshrayError, UsageError
from meshray.model.address import Endpoint
from meshray.model.keys import PrivateKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, STATIC, Node
from meshray.model.status import RayState
from meshray.raynode.command import DASHBOARD_PORT, GCS_PORT
from meshray.runtime.tasks import Tasks
from meshray.settings import Home
from meshray.wireguard.device import DeviceConfig, DeviceState
from meshray.wireguard.plan import plan

log = logging.getLogger(__name__)

#: How often the device is compared with what it should be when nothing tells of a change.
RECONCILE_S = 5.0
#: The same while no handshake with the hub is fresh: the next address must be tried soon.
IMPATIENT_S = 0.25
#: Longer than three handshake tries to each of three addresses.
OVERLAY_PATIENCE_S = 20.0
#: A head on a slow machine takes half a minute.
RAY_PATIENCE_S = 120.0
RAY_POLL_S = 0.1


class Agent:
    """One node's agent. `run` returns after `stop` was called, or raises what made it end."""

    def __init__(
        self, home: Home, enrolment: Enrolment, private_key: PrivateKey, mesh_map: MeshMap, parts: Parts
    ) -> None:
        self.home = home
        self.enrolment = enrolment
        self.map = mesh_map
        self.parts = parts
        self.progress = Progress()
        self.device_state: DeviceState | None = None
        self.link = LinkKeeper(lambda: self.coordinator, lambda: self.map, self._new_map, parts.versions, self.progress)
        self.private_key = private_key
        self._keys = PairKeys(enrolment.mesh_secret, private_key.public())
        self._hub = HubChoice.start(
            self._hub_addresses(), enrolment.coordinators[0].host if enrolment.coordinators else "", time.time()
        )
        self._wake = asyncio.Event()
        self._overlay_up = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks = Tasks()

    @property
    def me(self) -> Node:
        """This node in the map of the moment. Raises MeshrayError where it is not in it (any more)."""
        return own_node(self.enrolment, self.map)

    @property
    def coordinator(self) -> Coordinator:
        """Where the coordinator may be: the addresses of the token, and its overlay address as the last."""
        node = self.map.coordinator
        inside = (Endpoint(str(node.ip), self.enrolment.mesh_port),) if node and node.id != self.me.id else ()
        return Coordinator(
            (*self.enrolment.coordinators, *inside),
            bytes.fromhex(self.enrolment.fingerprint),
            self.enrolment.credential,
        )

    def stop(self) -> None:
        """Lets `run` take everything down and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Keeps the node as it should be until `stop`.

        Raises:
            RemovedFromMesh: the coordinator does not know this node any more; everything was taken down.
        """
        tasks = self._tasks
        if self.parts.coordinator is not None:
            tasks.start(self.parts.coordinator.run(), "coordinator")
        tasks.start(self.link.run(), "link")
        tasks.start(self._keep_device(), "device")
        tasks.start(self._start_what_needs_overlay(), "after overlay")
        try:
            await tasks.until(self._stopping)
        except RemovedFromMesh:
            self.enrolment = replace(self.enrolment, taken_out=True)
            self.enrolment.save(self.home)
            await self._take_down()
            raise
        finally:
            await tasks.close()
        await self._take_down()

    async def _take_down(self) -> None:
        log.info("going down")
        await self._tasks.close()
        if self.parts.ray is not None:
            await self.parts.ray.stop()
        if self.enrolment.ephemeral and not self.enrolment.taken_out:
            await self._say_goodbye()
        if self.parts.prober is not None:
            self.parts.prober.close()
        if self.parts.firewall is not None:
            _log_firewall(await asyncio.to_thread(self.parts.firewall.remove))
        await asyncio.to_thread(self.parts.device.remove)
        if self.parts.coordinator is not None:
            await self.parts.coordinator.stop()

    async def _say_goodbye(self) -> None:
        try:
            await self.coordinator.call("POST", "/v1/leave")
        except MeshrayError as error:
            log.warning("could not leave the mesh (%s); the coordinator removes an ephemeral node by itself", error)

    def _new_map(self, mesh_map: MeshMap) -> None:
        self.map = mesh_map
        save_map(self.home, mesh_map)
        self._hub = self._hub.with_candidates(self._hub_addresses(), time.time())
        if self.parts.ray is not None and mesh_map.head is not None:
            me = mesh_map.nodes.get(self.enrolment.node_id)
            self.parts.ray.drained(me is not None and me.drained)
            self.parts.ray.head_instance(mesh_map.head.ray_instance)
        self.progress.set("coordinator", "ok", f"mesh {mesh_map.mesh.name}, {len(mesh_map.nodes)} nodes")
        self._wake.set()

    def tell_ray_instance(self, instance: str) -> None:
        """This node's Ray head has another instance now (empty: it is down); the others are told."""
        self._tasks.start(self.link.tell_ray_instance(instance), "ray instance")

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
            delay_s = RECONCILE_S if self._overlay_up.is_set() else IMPATIENT_S
            if self._stale_hub():
                delay_s = IMPATIENT_S * 4
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), backoff_s(failures) if failures else delay_s)

    async def _reconcile(self) -> None:
        observed = await asyncio.to_thread(self.parts.device.read)
        self._hub = self._hub.step(self._hub_handshake(observed), time.time())
        steps = plan(observed, await self.desired())
        for step in steps:
            log.info("%s: %s", self.parts.device.name, step)
        if steps:
            await asyncio.to_thread(self.parts.device.apply, steps)
            observed = await asyncio.to_thread(self.parts.device.read)
        self.device_state = observed
        if observed is not None and (HUB in self.me.roles or is_fresh(self._hub_handshake(observed), time.time())):
            self._overlay_up.set()

    async def desired(self) -> DeviceConfig:
        """The device as it should be now."""
        return desired_device(
            self.me,
            self.map,
            self._keys,
            private_key=self.private_key,
            listen_port=self.enrolment.listen_port,
            hub=await _resolved(self._hub.endpoint),
        )

    def _hub_handshake(self, observed: DeviceState | None) -> float | None:
        peers = (
            [observed.peers[hub.public_key] for hub in self.map.hubs if hub.public_key in observed.peers]
            if (observed)
            else []
        )
        return peers[0].last_handshake if peers else None

    def _stale_hub(self) -> bool:
        return HUB not in self.me.roles and not is_fresh(self._hub_handshake(self.device_state), time.time())

    def _hub_addresses(self) -> list[Endpoint]:
        return [endpoint for hub in self.map.hubs for endpoint in hub.endpoints]

    # ---- what needs the overlay

    async def _start_what_needs_overlay(self) -> None:
        await self._wait_for_overlay()
        self.progress.set("overlay", "ok", f"{self.me.ip} on {self.parts.device.name} ({self.parts.device.kind})")
        if self.parts.firewall is not None:
            self.progress.set("firewall", "run")
            await self._apply_firewall(self.parts.firewall)
            self._tasks.start(self._keep_firewall(self.parts.firewall), "firewall")
        if self.parts.prober is not None:
            await self._open_prober(self.parts.prober)
            self._tasks.start(self.parts.prober.run(self.peers_online), "prober")
        if self.parts.ray is None:
            self.progress.set("ray", "skip", self.parts.no_ray_because)
            self.progress.finish(self._summary(None))
            return
        self.progress.set("ray", "run")
        self._tasks.start(self.parts.ray.run(), "ray")
        self.progress.finish(self._summary(await self._wait_for_ray(self.parts.ray)))

    async def _wait_for_overlay(self) -> None:
        try:
            await asyncio.wait_for(self._overlay_up.wait(), OVERLAY_PATIENCE_S)
        except asyncio.TimeoutError:
            tried = ", ".join(str(endpoint) for endpoint in self._hub.candidates)
            error = MeshrayError(
                "no_handshake",
                f"the hub does not answer WireGuard's handshake (tried UDP {tried})",
                hint=f"on the hub: does its firewall (and the cloud's) let in UDP port {self.enrolment.mesh_port}?",
            )
            log.error("%s", error)
            self.progress.fail("overlay", error)
            await self._overlay_up.wait()

    async def _wait_for_ray(self, ray: RayPart) -> Mapping[IPv4Address, RayState] | None:
        """Until the head's Ray says ALIVE of this node and counts what it offers; None where it is drained."""
        deadline = time.monotonic() + RAY_PATIENCE_S
        failed = False
        while True:
            table = await ray.node_table()
            mine = table.get(self.me.ip) if table else None
            if table and mine and mine.alive and mine.resources:
                alive = sum(1 for node in table.values() if node.alive)
                self.progress.set("ray", "ok", f"ALIVE, {alive} nodes in the cluster")
                return table
            if self.me.drained:
                self.progress.set("ray", "skip", "this node is drained")
                return None
            cause = ray.failure or ("Ray did not become ALIVE in time" if time.monotonic() > deadline else "")
            if cause and not failed:
                failed = True
                self.progress.fail("ray", MeshrayError("ray_failed", cause, hint="meshray logs ray"))
            await asyncio.sleep(RAY_POLL_S)

    def _summary(self, table: Mapping[IPv4Address, RayState] | None) -> dict[str, object]:
        """What ``init --json`` and ``join --json`` tell of a node that is up."""
        me, head, hubs = self.me, self.map.head, self.map.hubs
        path = path_to(self.view(None), head or hubs[0])
        return {
            "mesh": self.map.mesh.name,
            "node": {"name": me.name, "ip": str(me.ip)},
            "path": {"kind": path.kind, "transport": path.transport},
            "ray": {
                "alive": bool(table and table[me.ip].alive),
                "nodes": sum(1 for node in table.values() if node.alive) if table else 0,
            },
            "ray_address": f"{head.ip}:{GCS_PORT}" if head and table else None,
            "dashboard": f"http://{head.ip}:{DASHBOARD_PORT}" if head and table else None,
        }

    async def _open_prober(self, prober: Prober) -> None:
        try:
            await prober.open(self.me.ip)
        except OSError as error:
            raise MeshrayError(
                "probe_port", f"the overlay address {self.me.ip} cannot be used: {error.strerror}", hint="meshray up"
            ) from None

    async def _keep_firewall(self, firewall: FirewallPart) -> None:
        async for _ in firewall.changes():
            await self._apply_firewall(firewall)

    async def _apply_firewall(self, firewall: FirewallPart) -> None:
        _log_firewall(await asyncio.to_thread(firewall.apply))
        problems = firewall.problems()
        self.progress.set("firewall", "fail" if problems else "ok", "; ".join(problems))

    # ---- what operations ask

    def wake(self) -> None:
        """Compares the device with what it should be at once."""
        self._wake.set()

    def peers_online(self) -> list[IPv4Address]:
        """The overlay addresses of the other nodes whose agents are there."""
        return [
            node.ip
            for node in self.map.nodes.values()
            if node.online and STATIC not in node.roles and node.id != self.enrolment.node_id
        ]

    def ray_nodes(self) -> list[str]:
        """The names of the nodes on which Ray is meant to run now."""
        if self.parts.ray is None:
            return []
        nodes = self.map.nodes.values()
        return [node.name for node in nodes if node.versions.ray and node.online and not node.drained]

    def find(self, who: str) -> Node:
        """The node of this name or overlay address. Raises UsageError where there is none."""
        node = self.map.find(who)
        if node is None:
            raise UsageError("no_such_node", f"the mesh has no node {who[:80]!r}", hint="meshray node list")
        return node

    def view(self, table: Mapping[IPv4Address, RayState] | None) -> View:
        """All that this node knows now; ``table`` is Ray's node table, which the caller has asked for."""
        firewall, ray, prober = self.parts.firewall, self.parts.ray, self.parts.prober
        return View(
            me=self.me,
            mesh_map=self.map,
            device=self.device_state,
            measured=prober.measured if prober is not None else lambda peer: Measured(),
            ray=table,
            expects_ray=ray is not None,
            coordinator_reachable=self.link.is_open,
            complaints=(
                *(firewall.problems() if firewall is not None else ()),
                *((ray.failure,) if ray is not None and ray.failure else ()),
            ),
            now=time.time(),
        )


def _log_firewall(lines: list[str]) -> None:
    for line in lines:
        log.info("firewall: %s", line)


async def _resolved(endpoint: Endpoint | None) -> Endpoint | None:
    """The endpoint with an address in place of a name; None where the name does not resolve now."""
    if endpoint is None or endpoint.ip is not None:
        return endpoint
    try:
        found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)
    except OSError:
        log.warning("the hub's name %s does not resolve", endpoint.host)
        return None
    return Endpoint(str(found[0][4][0]), endpoint.port)
