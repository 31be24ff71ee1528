"""The last known resources of each node: those when Ray last listed it as ALIVE, for nodes that do not answer."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from meshray.model.meshmap import MeshMap
from meshray.model.node import Node

_Resources = Mapping[str, float]


class LastResources:
    """The resources of each node of the map, by the node's id. A removed node is forgotten."""

    def __init__(self) -> None:
        self._last: dict[str, _Resources] = {}

    def record(self, listed: Mapping[IPv4Address, _Resources], mesh_map: MeshMap) -> None:
        """Record Ray's node table.

        Args:
            listed: the resources of the nodes that are ALIVE, by overlay address.
        """
        nodes = mesh_map.nodes
        self._last = {node_id: resources for node_id, resources in self._last.items() if node_id in nodes}
        # A raylet that has just registered offers nothing yet.
        self._last.update({node.id: resources for node in nodes.values() if (resources := listed.get(node.ip))})

    def last(self, node: Node) -> _Resources | None:
        """Return the node's last resources; None: Ray never listed it while this agent ran."""
        return self._last.get(node.id)
