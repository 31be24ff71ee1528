"""The startup of a node once its tunnel works: firewall, probes, paths and Ray, with progress reports.

    overlay ──► firewall ──► prober, paths ──► Ray ALIVE ──► up
    Ray's ports closed ──────────────────────┘

A stage that does not finish in time is reported as failed; the agent keeps trying.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

from meshray.agent.dependencies import FirewallPart, RayPart
from meshray.agent.device.port_guard import CHECK_S, PortGuard, log_firewall, require_guarded
from meshray.agent.ray.table_keeper import TableKeeper
from meshray.agent.status.node_site import site_of_node
from meshray.agent.status.snapshot import Sources, current_path, summary_of
from meshray.agent.status.startup_progress import Progress
from meshray.errors import MeshrayError
from meshray.linux.overlay_sockets import SocketServer
from meshray.linux.tasks import Tasks
from meshray.model.amounts import counted
from meshray.model.link_labels import link_labels
from meshray.model.ray_state import RayState
from meshray.raynode.environment_file import start_line
from meshray.raynode.external import OFFERED
from meshray.raynode.listeners import ListeningSocket
from meshray.raynode.supervisor import RUNNING, RayNow

log = logging.getLogger(__name__)

#: Longer than three handshake attempts to each of three addresses.
OVERLAY_PATIENCE_S = 20.0
#: A head on a slow machine takes half a minute.
RAY_PATIENCE_S = 120.0
#: Ray gives up its own start after half a minute (ray._private.node), which a cold disk or a busy machine may take. A
#: start that fails sooner has another cause.
SLOW_START_S = 20.0
RAY_POLL_S = 0.1
#: Ray's start waits at most this long for the round trip in its labels, seconds.
_LABEL_PROBE_S = 1.0

RayTable = Mapping[IPv4Address, RayState]


class Startup:
    """The stages of one agent.

    Args:
        tasks: the agent's tasks, to which started parts are added.
        ray_table: the table keeper, which runs on the head.
    """

    def __init__(self, sources: Sources, progress: Progress, tasks: Tasks, ray_table: TableKeeper) -> None:
        self._sources = sources
        self._state = sources.state
        self._parts = sources.parts
        self._paths = sources.paths
        self._progress = progress
        self._tasks = tasks
        self._ray_table = ray_table
        self._guard = self._port_guard()
        self._is_admitted = asyncio.Event()
        self._ports_checked = asyncio.Event()
        self._ports_closed = asyncio.Event()

    def listening_sockets(self) -> Sequence[ListeningSocket] | None:
        """Return the listening sockets that the port guard found last; None: there is no guard on this node."""
        return self._guard.listening_sockets if self._guard is not None else None

    async def run(self) -> None:
        """Run all stages, then return; the parts that it started continue as the agent's tasks."""
        parts = self._parts
        guard = self._guard
        if guard is not None:
            # This runs beside the handshake, which takes longer; only Ray's start waits for it.
            self._tasks.start(self._guard_ports(guard), "port guard")
        await self._wait_for_overlay()
        device = parts.device
        self._progress.set("overlay", "ok", f"{self._state.me.ip} on {device.name} ({device.kind})")
        if parts.firewall is not None:
            # This runs beside the following stages: nothing needs to reach this node before Ray has started, which
            # takes longer.
            self._tasks.start(self._keep_firewall(parts.firewall), "firewall")
        else:
            self._is_admitted.set()
        if parts.forwards is not None:
            self._tasks.start(parts.forwards.run(), "forwards")
            self._tasks.start(SocketServer(self._state.home.overlay_socket).run(), "sockets of the overlay")
        await self._paths.open()
        self._paths.start()
        if parts.ray is None:
            self._progress.set("ray", "skip", parts.no_ray_reason)
            await self._is_admitted.wait()
            await self._finish(None)
            parts.ray = await self._wait_for_head()
            if guard is not None:
                self._ports_closed.clear()
                await self._close_ports(guard)
        self._progress.set("ray", "run")
        await self._label(parts.ray)
        if guard is not None:
            await self._ports_closed.wait()
        self._start_ray(parts.ray)
        if parts.ray.now.external:
            table = await self._wait_for_offer(parts.ray)
        else:
            table = await self._wait_for_ray(parts.ray)
        await self._is_admitted.wait()
        await self._finish(table)

    async def _finish(self, table: RayTable | None) -> None:
        """Report that the node is up, unless another machine uses its identity."""
        while (error := await self._state.membership.conflict(lambda: self._state.map)) is not None:
            self._progress.fail("coordinator", error)
            await asyncio.sleep(RAY_POLL_S)
        self._progress.finish(summary_of(self._sources, table))

    def _start_ray(self, ray: RayPart) -> None:
        self._tasks.start(ray.run(), "ray")
        if ray.now.plan.head:
            self._tasks.start(self._ray_table.run(ray), "Ray's node table")

    async def _wait_for_overlay(self) -> None:
        overlay_up = self._state.overlay_up
        try:
            await asyncio.wait_for(overlay_up.wait(), OVERLAY_PATIENCE_S)
        except asyncio.TimeoutError:
            tried, port = ", ".join(map(str, self._paths.hubs.tried)), self._state.enrolment.mesh_port
            error = MeshrayError(
                "no_handshake",
                f"the hub does not answer WireGuard's handshake (tried UDP {tried})",
                hint=f"on the hub: does its firewall (and the cloud's) allow UDP port {port}? "
                "Where it has another address now, here: meshray up --coordinator HOST:PORT",
            )
            log.error("%s", error)
            self._progress.fail("overlay", error)
            await overlay_up.wait()

    async def _wait_for_head(self) -> RayPart:
        """Wait for a head: a mesh may get its head after its workers."""
        while True:
            changed = self._state.map_changed
            try:
                ray = self._parts.late_ray(self._state.map)
            except MeshrayError as error:
                log.error("%s", error)
                self._progress.fail("ray", error)
                ray = None
            if ray is not None:
                return ray
            await changed.wait()

    async def _label(self, ray: RayPart) -> None:
        """Give Ray labels with this node's distance to the head, so that tasks can request near nodes."""
        state, prober = self._state, self._parts.prober
        head = state.map.head
        if head is None:
            return
        ray.head_instance(head.ray_instance)
        path = current_path(self._sources, head)
        rtt_ms = await prober.round_trip(head.ip, _LABEL_PROBE_S) if prober is not None and head != state.me else None
        ray.label(link_labels(rtt_ms, path.kind, path.transport, site_of_node(state)))

    async def _wait_for_ray(self, ray: RayPart) -> RayTable | None:
        """Wait until the head's Ray reports ALIVE for this node and counts its resources; None if it is drained."""
        deadline = time.monotonic() + RAY_PATIENCE_S
        failed = False
        while True:
            table = await ray.node_table()
            own_row = table.get(self._state.me.ip) if table else None
            is_listed = table is not None and own_row is not None and own_row.alive and bool(own_row.resources)
            if is_listed and ray.now.state != RUNNING:
                # The entry may belong to a raylet that died: only the supervisor can identify its own.
                ray.check_now()
            elif table is not None and is_listed:
                alive = sum(1 for node in table.values() if node.alive)
                self._progress.set("ray", "ok", f"ALIVE, {counted(alive, 'node')} in the cluster")
                return table
            if self._state.me.drained:
                self._progress.set("ray", "skip", "this node is drained")
                return None
            is_late = time.monotonic() > deadline
            cause = ray.failure or ("Ray did not become ALIVE in time" if is_late else "")
            if cause and not failed and _may_retry(ray.now) and not is_late:
                self._progress.set("ray", "run", "its start took too long and is tried again")
            elif cause and not failed:
                failed = True
                self._progress.fail("ray", MeshrayError("ray_failed", cause, hint="meshray logs ray"))
            await asyncio.sleep(RAY_POLL_S)

    async def _wait_for_offer(self, ray: RayPart) -> RayTable | None:
        """Wait until another program may start Ray here. The node is up then, also if Ray is never started."""
        deadline = time.monotonic() + RAY_PATIENCE_S
        file = self._state.home.ray_environment
        failed = ""
        while ray.now.state not in (OFFERED, RUNNING) and not self._state.me.drained:
            if ray.failure and ray.failure != failed:
                failed = ray.failure
                self._progress.fail("ray", MeshrayError("ray_failed", ray.failure, hint="meshray doctor"))
            if time.monotonic() > deadline:
                self._progress.set("ray", "skip", f"the head's Ray is down; {file} will exist when it runs")
                return None
            await asyncio.sleep(RAY_POLL_S)
        if ray.now.state == RUNNING:
            self._progress.set("ray", "ok", "ALIVE; another program started it")
            return await ray.node_table()
        self._progress.set("ray", "skip", f"another program starts it: {start_line(file)}")
        return None

    def _port_guard(self) -> PortGuard | None:
        parts, firewall = self._parts, self._parts.firewall
        if firewall is None:
            return None
        enrolment, network = self._state.enrolment, self._state.map.mesh.network.cidr
        excluded = {enrolment.mesh_port}
        return PortGuard(firewall, lambda: parts.ray, parts.listening, excluded, network, exposed=enrolment.exposed)

    async def _guard_ports(self, guard: PortGuard) -> None:
        while True:
            await self._close_ports(guard)
            self._ports_checked.set()
            await asyncio.sleep(CHECK_S)

    async def _close_ports(self, guard: PortGuard) -> None:
        """Close the ports that are open. Ray starts when they are closed, unless the user allows it to run without."""
        ray = self._parts.ray
        await guard.close()
        if ray is not self._parts.ray:  # A Ray that appeared meanwhile has ports that were not closed yet.
            return
        try:
            require_guarded(self._parts.firewall, unguarded=self._state.enrolment.unguarded)
        except MeshrayError as error:
            if not self._ports_closed.is_set():
                self._progress.fail("ray", error)
        else:
            self._ports_closed.set()

    async def _keep_firewall(self, firewall: FirewallPart) -> None:
        self._progress.set("firewall", "run")
        # This follows the closing of ports: ports of an earlier agent's Ray must not open even for a moment.
        await self._ports_checked.wait()
        await self._apply_firewall(firewall)
        self._is_admitted.set()
        async for _ in firewall.changes():
            await self._apply_firewall(firewall)

    async def _apply_firewall(self, firewall: FirewallPart) -> None:
        log_firewall(await asyncio.to_thread(firewall.apply))
        problems = firewall.problems()
        self._progress.set("firewall", "fail" if problems else "ok", "; ".join(problem.text for problem in problems))


def _may_retry(now: RayNow) -> bool:
    """Return whether Ray's first start failed for lack of time: the second one finds its files in memory."""
    return now.deaths == 1 and now.lived_s > SLOW_START_S
