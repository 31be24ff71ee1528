"""Prometheus' HTTP service discovery for one mesh: the agents, and the exporters of every node's Ray (pure).

>>> discovery(mesh_map)[0]
{'targets': ['10.99.0.1:20190'], 'labels': {'mesh': 'lab', 'node': 'head', 'role': 'head', 'site': '203.0.113.7'}}

The targets of Ray are those of its own service discovery, which has no names of nodes. A node that does not answer
stays a target, so that its absence is seen; one that a user took down does not.
"""

from __future__ import annotations

from meshray.defaults import METRICS_PORT
from meshray.model.link_labels import site_of
from meshray.model.meshmap import MeshMap
from meshray.model.node import HEAD, STATIC, Node
from meshray.model.ray_ports import AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT


def discovery(mesh_map: MeshMap) -> list[dict[str, object]]:
    """Return the groups of targets, one for each node."""
    nodes = sorted(mesh_map.nodes.values(), key=lambda node: node.ip)
    return [
        {
            "targets": [f"{node.ip}:{port}" for port in (METRICS_PORT, *_ray_ports(mesh_map, node))],
            "labels": {
                "mesh": str(mesh_map.mesh.name),
                "node": str(node.name),
                "role": node.role,
                "site": site_in_map(node),
            },
        }
        for node in nodes
        if STATIC not in node.roles and not node.down
    ]


def site_in_map(node: Node) -> str:
    """Return the site of a node, as far as the map shows it; see `site_of`."""
    return site_of(node.labels, node.seen or next(iter(node.endpoints), None))


def _ray_ports(mesh_map: MeshMap, node: Node) -> tuple[int, ...]:
    head = mesh_map.head
    if head is None or not head.versions.ray or not node.versions.ray or node.drained:
        return ()
    of_head = (DASHBOARD_METRIC_PORT, AUTOSCALER_METRIC_PORT) if HEAD in node.roles else ()
    return (mesh_map.ports_of(node).metrics_export, *of_head)
