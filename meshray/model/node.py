"""A node, as every other node knows it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address

import msgspec
from msgspec import UNSET

from meshray.model.address import Endpoint, NodeName, overlay_address
from meshray.model.attestation import Attestation
from meshray.model.keys import PublicKey
from meshray.model.printable import printable, printable_map
from meshray.model.ray_ports import ports_of_node
from meshray.protocol.codec import convert, optional, or_unset, to_json
from meshray.protocol.fields import FIRST_EPOCH
from meshray.protocol.forms import NodeForm, VersionsForm

#: Runs the Ray head.
HEAD = "head"
#: Is reachable from outside and forwards for pairs without a direct path.
HUB = "hub"
#: Runs the coordinator.
COORDINATOR = "coordinator"
#: Runs a Ray worker.
WORKER = "worker"
#: A device with wg-quick only: no agent, no Ray.
STATIC = "static"
ROLES = frozenset({HEAD, HUB, COORDINATOR, WORKER, STATIC})
#: The state of a node over the overlay, from the coordinator's node: it does not answer; it will not return as it
#: was.
SILENT, GONE = "silent", "gone"
#: The faults of a node that others must know. Two machines use its identity, as the coordinator detected; the detail is
#: the two addresses.
ONE_IDENTITY = "one_identity"
#: The map contains values that neither the node's identity nor the lock of the mesh signed (`meshray.model.lock`).
NODE_IDENTITY = "node_identity"
#: It is a hub and does not forward between nodes, as it reports itself; the detail is the reason.
HUB_FORWARDS = "hub_forwards"
#: The maximum number of characters of a fault's detail.
LONGEST_DETAIL = 200


@dataclass(frozen=True)
class Versions:
    """The versions of a node's programs. An empty text means that there is none (``ray``), or that it is not known."""

    meshray: str = ""
    ray: str = ""
    python: str = ""
    build: str = ""

    def form(self) -> VersionsForm:
        """Return the form in messages."""
        return VersionsForm(self.meshray, self.ray, self.python, or_unset(self.build))

    def to_json(self) -> dict[str, object]:
        """Return the JSON form."""
        return to_json(self.form())

    @classmethod
    @functools.lru_cache(256)  # Most nodes of a mesh run the same versions.
    def of(cls, form: VersionsForm) -> Versions:
        """Return the value of this form; texts are cut at 64 characters and lose non-printable characters."""
        build = "" if form.build is UNSET else form.build
        return cls(*(printable(text)[:64] for text in (form.meshray, form.ray, form.python, build)))

    @classmethod
    def from_json(cls, value: object) -> Versions:
        """Return the value of its JSON form. Raises WireError."""
        return cls.of(convert(value, VersionsForm))


@dataclass(frozen=True)
class Node:
    """One enrolled machine, container or job step.

    Attributes:
        id: stable while the node is enrolled, through renames and address changes.
        endpoints: the possible endpoints of its WireGuard: a user's first, then those of its interfaces.
        seen: its endpoint in a hub's WireGuard: the mapped address and port of the socket in use.
        hubs: ids of the hubs that this node can use now.
        online: whether its agent is connected to the coordinator.
        ephemeral: the coordinator removes it some time after it disconnected.
        drained: Ray's tasks have left it and must not return until a user allows it: its agent starts no Ray.
        down: a user took it down (`meshray down`), so its absence is intended.
        ended: its machine closed the agent's connection without a goodbye: the process was killed.
        silence: SILENT or GONE if the node does not answer the coordinator's node over the overlay.
        labels: the user's ``--label`` options, which Ray gets too.
        ray_instance: changes with every start of this node's Ray head; empty while it is down. A worker whose head has
            another instance than the one it joined starts its Ray again.
        faults: its faults that others must know: detail by code (`ONE_IDENTITY`, `HUB_FORWARDS`).
        secret_epoch: the newest epoch of the mesh secret that it holds; for a static peer, the epoch of its file.
        attestation: its identity's signature of its key; None: its meshray has none yet.
        ray_ports: the ports of its Ray that it chose itself, by name, as it reports them.
        no_remote: whether it refuses orders of the mesh's administrator, as it reports itself.
    """

    id: str
    name: NodeName
    ip: IPv4Address
    public_key: PublicKey
    roles: frozenset[str]
    endpoints: tuple[Endpoint, ...] = ()
    seen: Endpoint | None = None
    hubs: tuple[str, ...] = ()
    online: bool = False
    ephemeral: bool = False
    drained: bool = False
    down: bool = False
    ended: bool = False
    silence: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    versions: Versions = Versions()
    ray_instance: str = ""
    faults: Mapping[str, str] = field(default_factory=dict)
    secret_epoch: int = FIRST_EPOCH
    attestation: Attestation | None = None
    ray_ports: Mapping[str, int] = field(default_factory=dict)
    no_remote: bool = False

    @property
    def role(self) -> str:
        """The role shown in ``status``: the one that matters most to a user."""
        return next((role for role in (HEAD, HUB, STATIC) if role in self.roles), WORKER)

    @cached_property
    def json(self) -> bytes:
        """The JSON of the form, encoded once for all messages that contain it."""
        return msgspec.json.encode(self.form())

    def form(self) -> NodeForm:
        """Return the form in messages and in the cache."""
        return NodeForm(
            id=self.id,
            name=str(self.name),
            ip=str(self.ip),
            public_key=str(self.public_key),
            roles=tuple(sorted(self.roles)),
            endpoints=tuple(map(str, self.endpoints)),
            seen=str(self.seen) if self.seen else "",
            hubs=self.hubs,
            online=self.online,
            ephemeral=self.ephemeral,
            drained=self.drained,
            down=self.down,
            ended=self.ended,
            silence=self.silence,
            labels=dict(self.labels),
            versions=self.versions.form(),
            ray_instance=self.ray_instance,
            faults=or_unset(dict(self.faults)),
            secret_epoch=self.secret_epoch if self.secret_epoch != FIRST_EPOCH else UNSET,
            attestation=self.attestation.form() if self.attestation is not None else UNSET,
            ray_ports=or_unset(dict(self.ray_ports)),
            no_remote=or_unset(self.no_remote),
        )

    @classmethod
    def of(cls, form: NodeForm) -> Node:
        """Return the value of this form. Raises UsageError or WireError."""
        return cls(
            id=form.id,
            name=NodeName.parse(form.name),
            ip=overlay_address(form.ip),
            public_key=PublicKey.parse(form.public_key),
            roles=ROLES.intersection(form.roles),
            endpoints=Endpoint.parse_readable(form.endpoints),
            seen=next(iter(Endpoint.parse_readable([form.seen] if form.seen else [])), None),
            hubs=form.hubs,
            online=form.online,
            ephemeral=form.ephemeral,
            drained=form.drained,
            down=form.down,
            ended=form.ended,
            silence=form.silence,
            labels=printable_map(form.labels),
            versions=Versions.of(form.versions),
            ray_instance=form.ray_instance,
            faults=optional(printable_map, form.faults) or {},
            secret_epoch=FIRST_EPOCH if form.secret_epoch is UNSET else form.secret_epoch,
            attestation=optional(Attestation.of, form.attestation),
            ray_ports=optional(ports_of_node, form.ray_ports) or {},
            no_remote=form.no_remote is True,
        )

    @classmethod
    def from_json(cls, value: object) -> Node:
        """Return the value of its JSON form. Raises UsageError or WireError."""
        return cls.of(convert(value, NodeForm))

    def with_fields(self, fields: Mapping[str, object]) -> Node:
        """Return the node with these fields of its form; None removes one. Raises UsageError or WireError."""
        form = {key: value for key, value in {**to_json(self.form()), **fields}.items() if value is not None}
        return Node.from_json(form)


def changed_fields(old: Node, new: Node) -> dict[str, object]:
    """Return the fields of the new node's form that differ from the old one's; None: it has this field no more."""
    before, after = to_json(old.form()), to_json(new.form())
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return {**changed, **{key: None for key in before if key not in after}}
