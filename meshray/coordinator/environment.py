"""What nodes build that match the head: its versions, and the requirements that were recorded beside them; and the
ports that nodes chose for their Ray (pure).

>>> registry, rows, _ = locked(registry, "numpy==2.1.0\\n")
>>> environment_of(registry)
Environment(ray='2.60.0', python='3.11.7', requirements='numpy==2.1.0\\n')

It is asked for by a call of its own and does not travel with the map: a lock has tens of kilobytes, is read once for
each node, and would be sent to all of them with each reconnection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from meshray.coordinator.records import PutRequirements
from meshray.coordinator.registry import Outcome, Registry
from meshray.model.environment import Environment


def locked(registry: Registry, requirements: str) -> Outcome[None]:
    """These requirements belong to the head's environment from now on; empty: none do."""
    if requirements == registry.requirements:
        return registry, (), None
    return replace(registry, requirements=requirements), (PutRequirements(requirements),), None


def ports_chosen(registry: Registry, node_id: str, ports: Mapping[str, int]) -> Outcome[None]:
    """The node has chosen these ports for its Ray, by name, and no others. Raises UnknownError."""
    member = registry.member(node_id)
    if member.node.ray_ports == ports:
        return registry, (), None
    changed, rows, _ = registry.put(replace(member, node=replace(member.node, ray_ports=dict(ports))))
    return changed, rows, None


def environment_of(registry: Registry) -> Environment:
    """What a node is to have that matches the head."""
    head = registry.map.head
    versions = head.versions if head is not None else None
    ray, python = (versions.ray, versions.python) if versions is not None else ("", "")
    return Environment(ray, python, registry.requirements, registry.mesh.ray_ports)
