"""The snapshot of an agent's knowledge at one moment, for `meshray.agent.status.status_builder`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import msgspec

from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.dependencies import Dependencies
from meshray.agent.device.reconciler import Reconciler
from meshray.agent.paths.paths import Paths
from meshray.agent.paths.samples import Measured
from meshray.agent.ray.gpu_problem import GpuNotice
from meshray.agent.ray.last_resources import LastResources
from meshray.agent.ray.waiting_tasks import waiting_notices
from meshray.agent.state import NodeState
from meshray.agent.status.state_times import StateTimes
from meshray.agent.status.status_builder import Snapshot, path_to
from meshray.doctor.ray.facts import recent_end
from meshray.linux.clock import boot_s
from meshray.model.meshmap import MeshMap
from meshray.model.node import STATIC, Node, Versions
from meshray.model.problem import Problem
from meshray.model.ray_state import RayState
from meshray.protocol.control import Summary, SummaryNode, SummaryPath, SummaryRay
from meshray.protocol.status import PathStatus
from meshray.raynode.environment_file import start_line
from meshray.raynode.external import OFFERED
from meshray.raynode.supervisor import RUNNING, WAITING


@dataclass(frozen=True)
class Sources:
    """The sources of a snapshot: the parts of one agent, which are only read.

    Attributes:
        state_times: when each node's current state began.
        last_resources: the resources that each node last offered to Ray.
    """

    state: NodeState
    parts: Dependencies
    connection: CoordinatorConnection
    paths: Paths
    reconciler: Reconciler
    last_resources: LastResources
    state_times: StateTimes = field(default_factory=StateTimes)
    gpus: GpuNotice = field(default_factory=GpuNotice)


def snapshot_of(sources: Sources, table: Mapping[IPv4Address, RayState] | None) -> Snapshot:
    """Return everything that this node knows now. ``table`` is Ray's node table, which the caller has read."""
    state, paths = sources.state, sources.paths
    if table is not None:
        sources.last_resources.record({ip: row.resources for ip, row in table.items() if row.alive}, state.map)
    return Snapshot(
        me=state.me,
        mesh_map=state.map,
        device=state.device,
        measured=measured_by(sources),
        ray=table,
        expects_ray=expects_ray(sources),
        coordinator_reachable=sources.connection.is_open,
        complaints=tuple(complaints_of(sources)),
        notices=(
            *state.pins.notices(),
            *paths.notices(),
            *_gpu_notices(sources, table),
            *_restart_notices(sources),
            *waiting_notices(table),
            *external_notices(sources),
            *version_notices(state.map),
        ),
        open=state.enrolment.open,
        exposed=state.enrolment.exposed,
        unguarded=state.enrolment.unguarded,
        no_remote=state.enrolment.no_remote,
        environment=tuple(state.enrolment.environment.names),
        now=boot_s(),
        wall_clock=time.time(),
        changed=sources.state_times.since,
        silent_s=paths.silent_s,
        last_resources=sources.last_resources.last,
        known=paths.known,
    )


def measured_by(sources: Sources) -> Callable[[IPv4Address], Measured]:
    """Return the function that returns the last measurements of the path to an overlay address."""
    prober = sources.parts.prober
    return prober.measured if prober is not None else lambda peer: Measured()


def current_path(sources: Sources, node: Node) -> PathStatus:
    """Return the current path to this node."""
    return path_to(
        node,
        me=sources.state.me,
        device=sources.state.device,
        measured=measured_by(sources),
        known=sources.paths.known,
        now=boot_s(),
    )


async def with_machine(sources: Sources, snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with the results of the doctor's quick checks on this machine."""
    from meshray.doctor.quick import of_machine

    ray, me, home = sources.parts.ray, str(sources.state.me.name), sources.state.home
    ray_args = ray.now.plan.extra_args if ray is not None else None
    trusted = sources.state.enrolment.trust_user_environment
    failed, warned = await of_machine(snapshot.complaints, me, home, os.environ, ray_args, trusted=trusted)
    return replace(snapshot, complaints=(*snapshot.complaints, *failed), notices=(*snapshot.notices, *warned))


def summary_of(sources: Sources, table: Mapping[IPv4Address, RayState] | None) -> Summary:
    """Return the report of ``init --json`` and ``join --json`` for a node that is up; ``table`` is Ray's node table."""
    me, mesh_map, forwards = sources.state.me, sources.state.map, sources.parts.forwards
    head, is_external = mesh_map.head, sources.state.enrolment.external
    path = current_path(sources, head or mesh_map.hubs[0])
    return Summary(
        mesh=str(mesh_map.mesh.name),
        node=SummaryNode(str(me.name), str(me.ip)),
        path=SummaryPath(path.kind, path.transport),
        ray=SummaryRay(
            alive=bool(table and me.ip in table and table[me.ip].alive),
            nodes=sum(1 for node in table.values() if node.alive) if table else 0,
        ),
        ray_address=str(mesh_map.gcs) if head and (table or is_external) else None,
        dashboard=f"http://{mesh_map.dashboard}" if head and (table or is_external) else None,
        local=forwards.urls() if forwards is not None else msgspec.UNSET,
        env_file=str(sources.state.home.ray_environment) if is_external else msgspec.UNSET,
    )


def _gpu_notices(sources: Sources, table: Mapping[IPv4Address, RayState] | None) -> tuple[str, ...]:
    ray = sources.parts.ray
    if ray is None or table is None or ray.now.external:
        return ()
    return sources.gpus.notices(ray.now, table.get(sources.state.me.ip))


def _restart_notices(sources: Sources) -> Iterator[str]:
    """Yield the notice that Ray ended some minutes ago and was started again."""
    ray = sources.parts.ray.now if sources.parts.ray is not None else None
    if ray is not None and ray.state == RUNNING and (ended := recent_end(ray.ended_ago_s, ray.ended_because)):
        yield ended


def external_notices(sources: Sources) -> Iterator[str]:
    """Return what a user must know about a Ray that another program starts here and that is not ALIVE."""
    ray, file = sources.parts.ray, sources.state.home.ray_environment
    if ray is None or not ray.now.external:
        return
    if ray.now.state == OFFERED:
        yield f"Ray is not ALIVE here yet; another program starts it: {start_line(file)}"
    elif ray.now.state == WAITING and not ray.failure:
        yield f"the head's Ray is down, so none can be started here: {file} will exist when it runs"


def version_notices(mesh_map: MeshMap) -> Iterator[str]:
    """Return which nodes run another meshray than the coordinator's node. They work, but may lack what it has."""
    reference = mesh_map.coordinator
    if reference is None or not reference.versions.build:
        return
    wanted = reference.versions
    for node in sorted(mesh_map.nodes.values(), key=lambda node: node.ip):
        own = node.versions
        if node.online and STATIC not in node.roles and (own.meshray, own.build) != (wanted.meshray, wanted.build):
            yield (
                f"{node.name} runs another meshray ({_named(own)}) than {reference.name} ({_named(wanted)}): "
                f"on {reference.name}: meshray node upgrade {node.name}"
            )


def _named(versions: Versions) -> str:
    return f"{versions.meshray}, build {versions.build}" if versions.build else f"{versions.meshray}, an older build"


def complaints_of(sources: Sources) -> Iterator[Problem]:
    """Return the failures of this node's parts."""
    state, firewall, ray = sources.state, sources.parts.firewall, sources.parts.ray
    me = str(state.me.name)
    of_firewall = firewall.problems() if firewall is not None else ()
    for problem in (*of_firewall, *state.files.problems(), *state.membership.complaints()):
        yield replace(problem, node=me)
    yield from state.pins.problems()
    if ray is not None and ray.failure:
        yield Problem("ray_running", ray.failure, me, "meshray logs ray")
    for contested in sources.reconciler.contested_routes():
        yield Problem("overlay_route", contested, me, "meshray doctor")


def expects_ray(sources: Sources) -> bool:
    """Return whether the mesh runs Ray, as far as this node can know."""
    head, parts = sources.state.map.head, sources.parts
    if parts.ray is not None and not parts.ray.now.external:
        return True
    # Another program may not have started the head's Ray yet.
    return bool((parts.ray or parts.ray_table) and head and head.versions.ray)


def own_ray_alive(sources: Sources) -> bool | None:
    """Return whether this node's Ray is ALIVE; None if it should not run here now, or another program has not started
    it yet."""
    parts, me = sources.parts, sources.state.me
    ray = parts.ray.now if parts.ray is not None else None
    if ray is None or me.drained or (ray.external and not parts.versions.ray):
        return None
    return ray.state == RUNNING


def ray_nodes(sources: Sources) -> list[str]:
    """Return the names of the nodes on which Ray should run now."""
    if not expects_ray(sources):
        return []
    nodes = sources.state.map.nodes.values()
    return [node.name for node in nodes if node.versions.ray and node.online and not node.drained]
