"""Find the entries of Ray's node table that belong to no living raylet (pure).

left the mesh or was removed     no node of the map has the address
was taken down                   the map says so
will not come back as it was     the map says that it is gone
was replaced                     a newer raylet has the same address
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from meshray.model.meshmap import MeshMap
from meshray.model.node import GONE, Node
from meshray.raynode.dashboard_client import LiveNode


@dataclass(frozen=True)
class Departed:
    """An entry that should not be in the table.

    Attributes:
        id: Ray's id of the node, hexadecimal.
        reason: the reason for Ray's log and its users.
        at_once: nothing else will remove it soon; otherwise its raylet may be ending and unregister itself.
    """

    id: str
    reason: str
    at_once: bool


def departed(rows: Iterable[LiveNode], mesh_map: MeshMap) -> list[Departed]:
    """Return the entries of Ray's table that this map contradicts.

    Entries outside of the overlay do not belong to meshray, and the head's own entry never changes.
    """
    nodes = {node.ip: node for node in mesh_map.nodes.values()}
    head = mesh_map.head.ip if mesh_map.head is not None else None
    ours = [row for row in rows if row.id and row.ip in mesh_map.mesh.network.cidr and row.ip != head]
    newest = _newest(ours)
    return [found for row in ours if (found := _judged(row, nodes.get(row.ip), newest[row.ip])) is not None]


def _newest(rows: Iterable[LiveNode]) -> Mapping[IPv4Address, LiveNode]:
    return {row.ip: row for row in sorted(rows, key=lambda row: row.started)}


def _judged(row: LiveNode, node: Node | None, newest: LiveNode) -> Departed | None:
    if node is None:
        return Departed(row.id, "the node left the mesh", at_once=False)
    if node.down:
        return Departed(row.id, f"{node.name} was taken down", at_once=False)
    if node.silence == GONE:
        return Departed(
            row.id,
            f"{node.name} does not answer, and its processes ended or the patience of the mesh ran out",
            at_once=True,
        )
    if row != newest:
        return Departed(row.id, f"another raylet of {node.name} took its place", at_once=True)
    return None
