"""The head's environment, for nodes that match it, and the ports that nodes chose for their Ray (pure).

The environment consists of the head's versions and the recorded requirements.

>>> registry, rows, _ = locked(registry, "numpy==2.1.0\\n")
>>> environment_of(registry)
Environment(ray='2.60.0', python='3.11.7', requirements='numpy==2.1.0\\n')

A separate request returns it; the map does not contain it: a lock has tens of kilobytes, each node reads it once, and
every reconnection would send it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from meshray.coordinator.records import PutRequirements
from meshray.coordinator.registry import Outcome, Registry
from meshray.model.environment import Environment


def locked(registry: Registry, requirements: str) -> Outcome[None]:
    """Return the registry with these requirements of the head's environment; empty: none."""
    if requirements == registry.requirements:
        return registry, (), None
    return replace(registry, requirements=requirements), (PutRequirements(requirements),), None


def options_reported(registry: Registry, node_id: str, ports: Mapping[str, int], *, no_remote: bool) -> Outcome[None]:
    """Return the registry with these options of the node. Raises UnknownError.

    Args:
        ports: exactly the ports that it chose for its Ray, by name.
        no_remote: it refuses orders.
    """
    member = registry.member(node_id)
    node = replace(member.node, ray_ports=dict(ports), no_remote=no_remote)
    if node == member.node:
        return registry, (), None
    changed, rows, _ = registry.put(replace(member, node=node))
    return changed, rows, None


def environment_of(registry: Registry) -> Environment:
    """Return the environment that matches the head."""
    head = registry.map.head
    versions = head.versions if head is not None else None
    ray, python = (versions.ray, versions.python) if versions is not None else ("", "")
    return Environment(ray, python, registry.requirements, registry.mesh.ray_ports)
