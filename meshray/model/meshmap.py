"""The map: what every node knows of the others. Has a revision; travels whole once, then as changes.

coordinator: registry ──► MeshMap r7 ──(whole)──► agent
             registry ──► MeshMap r8 ──diff(r7, r8) = MapChange──► agent ──apply──► MeshMap r8
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from meshray.model import wire
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.attestation import Removals, optional_removals
from meshray.model.keys import VerifyKey
from meshray.model.node import COORDINATOR, HEAD, HUB, Node
from meshray.model.ray_ports import RayPorts, ports_from_json
from meshray.protocol.codec import WireError
from meshray.protocol.fields import DEFAULT_PATIENCE_S, LONGEST_MARK, MAX_PATIENCE_S, MAX_REVISION, MIN_PATIENCE_S


@dataclass(frozen=True)
class MeshInfo:
    """What never changes while a mesh exists.

    Attributes:
        patience_s: for how long Ray waits for a node that does not answer, seconds; see `meshray.raynode.patience`.
        lock: the key that signs tokens (`init --lock`); None: whoever has a token may join.
        ray_ports: those of the head's Ray that `init` chose, by name; see `meshray.model.ray_ports`.
    """

    id: str
    name: str
    network: OverlayNetwork
    patience_s: int = DEFAULT_PATIENCE_S
    lock: VerifyKey | None = None
    ray_ports: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "id": self.id,
            "name": self.name,
            "network": str(self.network),
            "patience_s": self.patience_s,
            **({"lock": str(self.lock)} if self.lock is not None else {}),
            **({"ray_ports": dict(self.ray_ports)} if self.ray_ports else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> MeshInfo:
        """The inverse of `to_json`."""
        return cls(
            wire.text(value, "id", 64),
            wire.text(value, "name", 63),
            OverlayNetwork.parse(wire.text(value, "network", 18)),
            # A coordinator of an older release does not say it.
            wire.number(value, "patience_s", MIN_PATIENCE_S, MAX_PATIENCE_S, DEFAULT_PATIENCE_S),
            VerifyKey.parse(wire.text(value, "lock", 44)) if "lock" in value else None,
            ports_from_json(value, "ray_ports", mesh_wide=True),
        )


@dataclass(frozen=True)
class MapChange:
    """What leads from one revision to the next; None marks a node that is gone."""

    base: int
    revision: int
    nodes: Mapping[str, Node | None]
    mark: str = ""
    removals: Removals | None = None

    def to_json(self) -> dict[str, object]:
        """The JSON form; its size is in proportion to what changed."""
        return {
            "base": self.base,
            "revision": self.revision,
            "nodes": {key: node.to_json() if node else None for key, node in self.nodes.items()},
            "mark": self.mark,
            **({"removals": self.removals.to_json()} if self.removals is not None else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> MapChange:
        """The inverse of `to_json`."""
        return cls(
            wire.number(value, "base", 0, MAX_REVISION),
            wire.number(value, "revision", 0, MAX_REVISION),
            _nodes_from_json(wire.mapping(value, "nodes")),
            wire.text(value, "mark", LONGEST_MARK, ""),
            optional_removals(value),
        )


@dataclass(frozen=True)
class MeshMap:
    """All nodes of the mesh at one revision, by node id.

    Attributes:
        mark: the coordinator's own name for this moment; told back to it, it shows whether it has lost some of
            its past. Means nothing to anybody else.
        removals: what the lock has removed; None: nothing, or there is no lock.
    """

    mesh: MeshInfo
    revision: int
    nodes: Mapping[str, Node]
    mark: str = ""
    removals: Removals | None = None

    def with_role(self, role: str) -> list[Node]:
        """The nodes that have this role, in the order of their addresses."""
        return sorted((node for node in self.nodes.values() if role in node.roles), key=lambda node: node.ip)

    @cached_property
    def head(self) -> Node | None:
        """The node that runs the Ray head."""
        return next(iter(self.with_role(HEAD)), None)

    @property
    def gcs(self) -> Endpoint | None:
        """Where the GCS of the head's Ray is; None where there is no head."""
        return Endpoint(str(self.head.ip), self.ports_of().gcs) if self.head is not None else None

    @property
    def dashboard(self) -> Endpoint | None:
        """Where the dashboard of the head's Ray is; None where there is no head."""
        return Endpoint(str(self.head.ip), self.ports_of().dashboard) if self.head is not None else None

    def ports_of(self, node: Node | None = None) -> RayPorts:
        """The ports of this node's Ray; without a node, those of one that chose none for itself."""
        return RayPorts.of({**(node.ray_ports if node is not None else {}), **self.mesh.ray_ports})

    @cached_property
    def coordinator(self) -> Node | None:
        """The node that runs the coordinator."""
        return next(iter(self.with_role(COORDINATOR)), None)

    @property
    def hubs(self) -> list[Node]:
        """The nodes that forward for others."""
        return self.with_role(HUB)

    def find(self, who: str) -> Node | None:
        """The node with this name or overlay address."""
        for node in self.nodes.values():
            if node.name == who.lower() or str(node.ip) == who:
                return node
        return None

    def apply(self, change: MapChange) -> MeshMap:
        """The map after this change.

        Raises:
            WireError: the change starts from another revision than this map's, or leads to a map that cannot be.
        """
        if change.base != self.revision:
            raise WireError(f"a change from revision {change.base} came to a map of revision {self.revision}")
        nodes = {key: node for key, node in self.nodes.items() if key not in change.nodes}
        nodes.update({key: node for key, node in change.nodes.items() if node is not None})
        removals = change.removals or self.removals
        return _sound(replace(self, revision=change.revision, nodes=nodes, mark=change.mark, removals=removals))

    def to_json(self) -> dict[str, object]:
        """The form on the wire and in the cache."""
        return {
            "mesh": self.mesh.to_json(),
            "revision": self.revision,
            "nodes": {key: node.to_json() for key, node in self.nodes.items()},
            "mark": self.mark,
            **({"removals": self.removals.to_json()} if self.removals is not None else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> MeshMap:
        """The inverse of `to_json`. Raises UsageError or WireError where the form is wrong or no map can be so."""
        nodes = _nodes_from_json(wire.mapping(value, "nodes"))
        return _sound(
            cls(
                MeshInfo.from_json(wire.mapping(value, "mesh")),
                wire.number(value, "revision", 0, MAX_REVISION),
                {key: node for key, node in nodes.items() if node is not None},
                wire.text(value, "mark", LONGEST_MARK, ""),
                optional_removals(value),
            )
        )


def diff(old: MeshMap, new: MeshMap) -> MapChange:
    """The change that leads from ``old`` to ``new``."""
    changed: dict[str, Node | None] = {key: None for key in old.nodes if key not in new.nodes}
    changed.update({key: node for key, node in new.nodes.items() if old.nodes.get(key) != node})
    removals = new.removals if new.removals != old.removals else None
    return MapChange(old.revision, new.revision, changed, new.mark, removals)


def _sound(mesh_map: MeshMap) -> MeshMap:
    """The map, where it can be one: a node's address becomes a route and a WireGuard peer's allowed address on every
    node, so none may lie outside of the overlay, and none may be two nodes' at once. Raises WireError."""
    low, count = int(mesh_map.mesh.network.node_half[0]), mesh_map.mesh.network.node_half.num_addresses
    for key, node in mesh_map.nodes.items():
        if node.id != key:
            raise WireError(f"nodes: {key[:64]!r} has another id inside")
        if not low <= int(node.ip) < low + count:
            raise WireError(f"nodes: {node.name} has {node.ip}, which is no node's address in {mesh_map.mesh.network}")
    nodes = mesh_map.nodes.values()
    for what, values in (
        ("name", {node.name for node in nodes}),
        ("address", {node.ip for node in nodes}),
        ("key", {node.public_key for node in nodes}),
    ):
        if len(values) != len(nodes):
            raise WireError(f"nodes: two have the same {what}")
    return mesh_map


def _nodes_from_json(value: Mapping[str, object]) -> dict[str, Node | None]:
    return {key: None if item is None else Node.from_json(_as_object(item)) for key, item in value.items()}


def _as_object(item: object) -> Mapping[str, object]:
    if not isinstance(item, dict):
        raise WireError("nodes: must map ids to nodes")
    return item
