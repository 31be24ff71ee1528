"""What each node offered when Ray last listed it as ALIVE: the last that is known of a node that does not answer."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from meshray.model.meshmap import MeshMap
from meshray.model.node import Node

_Resources = Mapping[str, float]


class Offers:
    """Keeps the resources of each node of the map, by the node's id. A removed node is forgotten."""

    def __init__(self) -> None:
        self._last: dict[str, _Resources] = {}

    def look(self, listed: Mapping[IPv4Address, _Resources], mesh_map: MeshMap) -> None:
        """Ray's node table was read.

        Args:
            listed: the resources of the nodes that are ALIVE, by overlay address.
        """
        nodes = mesh_map.nodes
        self._last = {node_id: resources for node_id, resources in self._last.items() if node_id in nodes}
        # A raylet that has just registered offers nothing yet.
        self._last.update({node.id: offer for node in nodes.values() if (offer := listed.get(node.ip))})

    def last(self, node: Node) -> _Resources | None:
        """Return what the node offered last; None: Ray never listed it while this agent looked."""
        return self._last.get(node.id)
