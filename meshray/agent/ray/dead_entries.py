"""Find the entries of Ray's node table that belong to no living raylet (pure).

left the mesh or was removed     no node of the map has the address
was taken down                   the map records it
will not return as it was        the map records that it is gone
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
class DeadEntry:
    """An entry that should not be in the table.

    Attributes:
        id: Ray's id of the node, hexadecimal.
        reason: the reason for Ray's log and its users.
        immediate: nothing else will remove it soon; otherwise its raylet may be ending and unregister itself.
    """

    id: str
    reason: str
    immediate: bool


def find_dead_entries(rows: Iterable[LiveNode], mesh_map: MeshMap) -> list[DeadEntry]:
    """Return the entries of Ray's table that this map contradicts.

    Entries outside of the overlay do not belong to meshray, and the head's own entry never changes.
    """
    nodes = {node.ip: node for node in mesh_map.nodes.values()}
    head = mesh_map.head.ip if mesh_map.head is not None else None
    overlay_rows = [row for row in rows if row.id and row.ip in mesh_map.mesh.network.cidr and row.ip != head]
    newest = _newest(overlay_rows)
    return [found for row in overlay_rows if (found := _dead_entry(row, nodes.get(row.ip), newest[row.ip])) is not None]


def _newest(rows: Iterable[LiveNode]) -> Mapping[IPv4Address, LiveNode]:
    return {row.ip: row for row in sorted(rows, key=lambda row: row.started)}


def _dead_entry(row: LiveNode, node: Node | None, newest: LiveNode) -> DeadEntry | None:
    if node is None:
        return DeadEntry(row.id, "the node left the mesh", immediate=False)
    if node.down:
        return DeadEntry(row.id, f"{node.name} was taken down", immediate=False)
    if node.silence == GONE:
        return DeadEntry(
            row.id,
            f"{node.name} does not answer, and its processes ended or the patience of the mesh ran out",
            immediate=True,
        )
    if row != newest:
        return DeadEntry(row.id, f"another raylet of {node.name} took its place", immediate=True)
    return None
