"""The current status of the mesh from this node, with Ray's node table, which the head's dashboard answers with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from ipaddress import IPv4Address

from meshray.agent.status.snapshot import Sources, snapshot_of, with_machine
from meshray.agent.status.status_builder import build_status
from meshray.errors import MeshrayError
from meshray.model.ray_state import RayState
from meshray.protocol.status import Status


async def current_status(sources: Sources) -> Status:
    """Return everything that `meshray status` shows."""
    return build_status(await with_machine(sources, snapshot_of(sources, await ray_table(sources))))


async def ray_table(sources: Sources) -> Mapping[IPv4Address, RayState] | None:
    """Return Ray's node table with the resources in use; None if the head's Ray does not answer."""
    parts, mesh_map = sources.parts, sources.state.map
    head, dashboard = mesh_map.head, mesh_map.dashboard
    if parts.ray is not None:
        return await parts.ray.node_table(with_use=True)
    if parts.ray_table is None or head is None or dashboard is None or not head.versions.ray:
        return None
    with contextlib.suppress(MeshrayError):
        return await parts.ray_table(dashboard)
    return None
