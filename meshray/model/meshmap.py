"""The map: what every node knows about the others. It has a revision; it is sent whole once, then as changes.

coordinator: registry ──► MeshMap r7 ──(whole)──► agent
             registry ──► MeshMap r8 ──MapChange r7 to r8──► agent ──apply──► MeshMap r8
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address
from typing import TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType

from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.attestation import Removals
from meshray.model.keys import PublicKey, VerifyKey
from meshray.model.node import COORDINATOR, HEAD, HUB, Node
from meshray.model.ray_ports import RayPorts, ports_of_mesh
from meshray.protocol.codec import WireError, optional, or_unset
from meshray.protocol.fields import DEFAULT_PATIENCE_S
from meshray.protocol.forms import ChangeForm, MapForm, MeshForm, RemovalsForm

#: What no two nodes of a map share.
_Unique: TypeAlias = NodeName | IPv4Address | PublicKey


@dataclass(frozen=True)
class MeshInfo:
    """The properties of a mesh that never change.

    Attributes:
        patience_s: how long Ray waits for a node that does not answer, seconds; see `meshray.raynode.patience`.
        lock: the key that signs tokens (`init --lock`); None: every holder of a token may join.
        ray_ports: the ports of the head's Ray that `init` chose, by name; see `meshray.model.ray_ports`.
    """

    id: str
    name: str
    network: OverlayNetwork
    patience_s: int = DEFAULT_PATIENCE_S
    lock: VerifyKey | None = None
    ray_ports: Mapping[str, int] = field(default_factory=dict)

    def form(self) -> MeshForm:
        """Return the form in messages."""
        return MeshForm(
            self.id,
            self.name,
            str(self.network),
            self.patience_s,
            str(self.lock) if self.lock is not None else UNSET,
            or_unset(dict(self.ray_ports)),
        )

    @classmethod
    def of(cls, form: MeshForm) -> MeshInfo:
        """Return the value of this form. Raises UsageError or WireError."""
        return cls(
            form.id,
            form.name,
            OverlayNetwork.parse(form.network),
            form.patience_s,
            optional(VerifyKey.parse, form.lock),
            optional(ports_of_mesh, form.ray_ports) or {},
        )


@dataclass(frozen=True)
class MapChange:
    """The change from one revision to another; None marks a removed node.

    Attributes:
        mark: None: it has not changed.
        fields: the changed fields of other nodes' forms, as of `Node.with_fields`.
    """

    base: int
    revision: int
    nodes: Mapping[str, Node | None]
    mark: str | None = ""
    removals: Removals | None = None
    fields: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def form(self) -> ChangeForm:
        """Return the form in messages; its size is proportional to the change."""
        return ChangeForm(
            self.base,
            self.revision,
            {key: node.form() if node else None for key, node in self.nodes.items()},
            self.mark if self.mark is not None else UNSET,
            self.removals.form() if self.removals is not None else UNSET,
            or_unset({key: dict(fields) for key, fields in self.fields.items()}),
        )

    @classmethod
    def of(cls, form: ChangeForm) -> MapChange:
        """Return the value of this form. Raises UsageError or WireError."""
        nodes = {key: Node.of(node) if node is not None else None for key, node in form.nodes.items()}
        mark, fields = None if form.mark is UNSET else form.mark, {} if form.fields is UNSET else form.fields
        return cls(form.base, form.revision, nodes, mark, optional(Removals.of, form.removals), fields)


class _EncodedMap(msgspec.Struct, frozen=True):
    """The fields of `MapForm`, with the nodes as JSON."""

    mesh: MeshForm
    revision: int
    nodes: dict[str, Raw]
    mark: str
    removals: RemovalsForm | UnsetType


@dataclass(frozen=True)
class MeshMap:
    """All nodes of the mesh at one revision, by node id.

    Attributes:
        mark: the coordinator's identifier of this moment; when a node returns it, the coordinator detects whether it
            has lost part of its past. It is opaque to nodes.
        removals: the removals signed by the lock; None: none, or there is no lock.
    """

    mesh: MeshInfo
    revision: int
    nodes: Mapping[str, Node]
    mark: str = ""
    removals: Removals | None = None

    def with_role(self, role: str) -> list[Node]:
        """Return the nodes with this role, in the order of their addresses."""
        return sorted((node for node in self.nodes.values() if role in node.roles), key=lambda node: node.ip)

    @cached_property
    def head(self) -> Node | None:
        """The node that runs the Ray head."""
        return next(iter(self.with_role(HEAD)), None)

    @property
    def gcs(self) -> Endpoint | None:
        """The address of the GCS of the head's Ray; None without a head."""
        return Endpoint(str(self.head.ip), self.ports_of().gcs) if self.head is not None else None

    @property
    def dashboard(self) -> Endpoint | None:
        """The address of the dashboard of the head's Ray; None without a head."""
        return Endpoint(str(self.head.ip), self.ports_of().dashboard) if self.head is not None else None

    def ports_of(self, node: Node | None = None) -> RayPorts:
        """Return the ports of this node's Ray; without a node, those of one that chose none."""
        return RayPorts.of({**(node.ray_ports if node is not None else {}), **self.mesh.ray_ports})

    @cached_property
    def coordinator(self) -> Node | None:
        """The node that runs the coordinator."""
        return next(iter(self.with_role(COORDINATOR)), None)

    @property
    def hubs(self) -> list[Node]:
        """The nodes that forward for others."""
        return self.with_role(HUB)

    def find(self, name_or_ip: str) -> Node | None:
        """Return the node with this name or overlay address."""
        for node in self.nodes.values():
            if node.name == name_or_ip.lower() or str(node.ip) == name_or_ip:
                return node
        return None

    def apply(self, change: MapChange) -> MeshMap:
        """Return the map after this change.

        Raises:
            WireError: the change starts from another revision than this map's, or the result is an invalid map.
        """
        if change.base != self.revision:
            raise WireError(f"a change from revision {change.base} came to a map of revision {self.revision}")
        nodes = dict(self.nodes)
        for key, node in change.nodes.items():
            if node is not None:
                nodes[key] = node
            else:
                nodes.pop(key, None)
        for key, fields in change.fields.items():
            if key not in nodes:
                raise WireError(f"a change of {key[:64]!r}, which is not in the map")
            nodes[key] = nodes[key].with_fields(fields)
        removals, mark = change.removals or self.removals, self.mark if change.mark is None else change.mark
        changed = replace(self, revision=change.revision, nodes=nodes, mark=mark, removals=removals)
        # In a map of thousands of nodes only the changed ones are validated.
        vars(changed)["_owners"] = _owners_after(self, changed, {*change.nodes, *change.fields})
        return changed

    @cached_property
    def _owners(self) -> Mapping[_Unique, str]:
        """The id of the node that has each name, address and key. Raises WireError if the map is invalid."""
        return _owners_after(MeshMap(self.mesh, 0, {}), self, self.nodes.keys())

    def encoded(self) -> bytes:
        """Return the JSON of the form, in which each node is encoded only once for all maps that contain it."""
        nodes = {key: Raw(node.json) for key, node in self.nodes.items()}
        removals = self.removals.form() if self.removals is not None else UNSET
        return msgspec.json.encode(_EncodedMap(self.mesh.form(), self.revision, nodes, self.mark, removals))

    def form(self) -> MapForm:
        """Return the form in messages and in the cache."""
        return MapForm(
            self.mesh.form(),
            self.revision,
            {key: node.form() for key, node in self.nodes.items()},
            self.mark,
            self.removals.form() if self.removals is not None else UNSET,
        )

    @classmethod
    def of(cls, form: MapForm) -> MeshMap:
        """Return the value of this form. Raises UsageError or WireError if the map is invalid."""
        nodes = {key: Node.of(node) for key, node in form.nodes.items()}
        removals = optional(Removals.of, form.removals)
        return _validated(cls(MeshInfo.of(form.mesh), form.revision, nodes, form.mark, removals))


def changed_nodes(old: MeshMap, new: MeshMap) -> list[str]:
    """Return the ids of the nodes that only one of the maps has, or that differ."""
    before, gone = old.nodes, [key for key in old.nodes if key not in new.nodes]
    # Nodes that did not change are the same objects: comparing the others' fields is what takes time.
    replaced = [(key, node) for key, node in new.nodes.items() if before.get(key) is not node]
    return gone + [key for key, node in replaced if before.get(key) != node]


def _validated(mesh_map: MeshMap) -> MeshMap:
    """Return the map if it is valid. Raises WireError."""
    _ = mesh_map._owners
    return mesh_map


def _owners_after(old: MeshMap, new: MeshMap, changed: Collection[str]) -> Mapping[_Unique, str]:
    """Return the owners of names, addresses and keys after these nodes changed.

    A node's address becomes a route and a WireGuard peer's allowed address on every node, so no address may be outside
    of the overlay or belong to two nodes.

    Raises:
        WireError: the new map is invalid.
    """
    half = new.mesh.network.node_half
    low, count = int(half[0]), half.num_addresses
    moved = [key for key in changed if _unique(old.nodes.get(key)) != _unique(new.nodes.get(key))]
    for key in changed:
        node = new.nodes.get(key)
        if node is not None and node.id != key:
            raise WireError(f"nodes: {key[:64]!r} has another id inside")
    if not moved:
        return old._owners if old.nodes else {}
    owners = dict(old._owners) if old.nodes else {}
    for key in moved:
        for value in _unique(old.nodes.get(key)):
            del owners[value]
    for key in moved:
        node = new.nodes.get(key)
        if node is not None and not low <= int(node.ip) < low + count:
            raise WireError(f"nodes: {node.name} has {node.ip}, which is not a node address in {new.mesh.network}")
        for what, value in zip(("name", "address", "key"), _unique(node), strict=False):
            if owners.setdefault(value, key) != key:
                raise WireError(f"nodes: two have the same {what}")
    return owners


def _unique(node: Node | None) -> tuple[_Unique, ...]:
    """Return what no other node of the map may have; nothing without a node."""
    return (node.name, node.ip, node.public_key) if node is not None else ()
