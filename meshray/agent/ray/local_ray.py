"""The Ray that this node runs: its installation, its plan, its user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshray.agent.device.desired_device import own_node
from meshray.defaults import INTERFACE
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.user import User
from meshray.model.meshmap import MeshMap
from meshray.model.node import HEAD, Node
from meshray.model.ray_ports import RayPorts, take_ports
from meshray.node.enrolment import MATCH, Enrolment
from meshray.raynode.command import RayPlan
from meshray.raynode.versions import MATCH_AGAIN, RayInstallation, compare, find_ray


@dataclass(frozen=True)
class LocalRay:
    """The Ray that this node should run.

    Attributes:
        installation: None: there is none beside meshray, and another program starts Ray.
        external: another program starts it.
    """

    installation: RayInstallation | None
    plan: RayPlan
    user: User
    external: bool = False


def find_local_ray(home: Home, enrolment: Enrolment, mesh_map: MeshMap, environ: Mapping[str, str]) -> LocalRay | str:
    """Return the Ray of this node, or the reason why it has none. Raises MeshrayError if it cannot be used."""
    head = mesh_map.head
    if not enrolment.with_ray:
        return "not asked for (--no-ray)"
    user = User.by_uid(enrolment.user_uid)
    me = own_node(enrolment, mesh_map)
    if head is None or (not head.versions.ray and not (enrolment.external and head.id == me.id)):
        return "this mesh has no Ray head yet" if head is None else "the head of this mesh runs no Ray"
    if enrolment.external:
        plan = ray_plan(enrolment, me, head, mesh_map, home)
        return LocalRay(_ray_beside(environ, user), plan, user, external=True)
    try:
        installation = find_ray(enrolment.ray or None, environ, user)
        if head.id != enrolment.node_id:
            # If the head came later, its Ray could not be compared when this node enrolled.
            compare(installation.versions, head.versions, MATCH_AGAIN)
    except MeshrayError:
        if enrolment.env != MATCH:
            raise
        # Ray's start is preceded by another check; see `meshray.agent.ray.renewal`.
        installation = RayInstallation(Path(enrolment.ray), Path(enrolment.ray).with_name("python"), me.versions)
    return LocalRay(installation, ray_plan(enrolment, me, head, mesh_map, home), user)


def _ray_beside(environ: Mapping[str, str], user: User) -> RayInstallation | None:
    """Return a Ray that meshray finds, which only unregisters dead nodes; None if there is none."""
    try:
        return find_ray(None, environ, user)
    except MeshrayError:
        return None


def ray_plan(enrolment: Enrolment, me: Node, head: Node, mesh_map: MeshMap, home: Home) -> RayPlan:
    """Return the plan of this node's Ray (pure)."""
    _, extra_args = take_ports(enrolment.ray_args)
    return RayPlan(
        head=HEAD in me.roles,
        node_ip=me.ip,
        head_ip=head.ip,
        node_name=me.name,
        labels=enrolment.labels,
        extra_args=extra_args,
        interface=INTERFACE,
        token_path=home.ray_token,
        network=mesh_map.mesh.network,
        ports=RayPorts.of({**enrolment.ray_ports, **mesh_map.mesh.ray_ports}),
        patience_s=mesh_map.mesh.patience_s,
        environment=enrolment.environment,
    )
