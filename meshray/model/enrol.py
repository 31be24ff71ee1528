"""A machine's request to become a node, and its answer, as carried by POST /v1/enroll."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec import UNSET

from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Attestation
from meshray.model.keys import MeshSecret, PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import Versions
from meshray.model.printable import printable_map
from meshray.protocol.api import REQUESTABLE_ROLES, EnrolForm, EnrolledForm
from meshray.protocol.codec import WireError, convert, optional
from meshray.protocol.fields import FIRST_EPOCH

#: The headers with which an agent, when it connects, reports what it knows of the coordinator's past.
MARK_HEADER, TICKET_HEADER = "Meshray-Mark", "Meshray-Ticket"
#: The header with a random word of the agent's process, which distinguishes two machines with one identity.
INSTANCE_HEADER = "Meshray-Instance"
LONGEST_INSTANCE = 32
#: The header with the forms of the map that an agent accepts, and the map that it has:
#: ``packed fields resume=<journal>:<revision>``. An agent of an older release does not send it.
MAP_HEADER = "Meshray-Map"
PACKED_ABILITY, FIELDS_ABILITY, RESUME_ABILITY = "packed", "fields", "resume"


@dataclass(frozen=True)
class EnrolRequest:
    """A machine's request to become a node.

    Attributes:
        mesh_id: the token's mesh; the coordinator of another mesh refuses.
        name_is_exact: the user chose the name, so a name in use is refused; otherwise it gets a number.
        with_ray: the node will run Ray; as a worker its versions must match the head's.
        endpoints: a user's endpoints for its WireGuard, which are kept.
        roles: the additional roles that it requests, from `REQUESTABLE_ROLES`.
        follows_epochs: its agent follows new epochs of the mesh's secrets.
        attestation: its identity's signature of the key; None: its meshray is of an earlier release.
        short_map: the answer's map needs only this node, the head, the hubs and the coordinator: the agent receives the
            whole map when it connects.
    """

    mesh_id: str
    token_id: str
    secret: str = field(repr=False)
    name: NodeName
    name_is_exact: bool
    public_key: PublicKey
    versions: Versions
    with_ray: bool
    ephemeral: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()
    roles: frozenset[str] = frozenset()
    follows_epochs: bool = True
    attestation: Attestation | None = None
    short_map: bool = False

    def form(self) -> EnrolForm:
        """Return the form in messages."""
        return EnrolForm(
            mesh_id=self.mesh_id,
            token_id=self.token_id,
            secret=self.secret,
            name=str(self.name),
            name_is_exact=self.name_is_exact,
            public_key=str(self.public_key),
            versions=self.versions.form(),
            with_ray=self.with_ray,
            ephemeral=self.ephemeral,
            labels=dict(self.labels),
            endpoints=tuple(map(str, self.endpoints)),
            roles=tuple(sorted(self.roles)),
            follows_epochs=self.follows_epochs,
            attestation=self.attestation.form() if self.attestation is not None else UNSET,
            short_map=self.short_map,
        )

    @classmethod
    def from_json(cls, value: object) -> EnrolRequest:
        """Return the request in this JSON form. Raises UsageError or WireError."""
        form = convert(value, EnrolForm)
        return cls(
            mesh_id=form.mesh_id,
            token_id=form.token_id,
            secret=form.secret,
            name=NodeName.parse(form.name),
            name_is_exact=form.name_is_exact,
            public_key=PublicKey.parse(form.public_key),
            versions=Versions.of(form.versions),
            with_ray=form.with_ray,
            ephemeral=form.ephemeral,
            labels=printable_map(form.labels),
            endpoints=tuple(map(Endpoint.parse, form.endpoints)),
            roles=parse_roles(form.roles),
            follows_epochs=form.follows_epochs,
            attestation=optional(Attestation.of, form.attestation),
            short_map=form.short_map,
        )


@dataclass(frozen=True)
class EnrolAnswer:
    """The answer: the machine is now a node.

    Attributes:
        credential: sent with every later call; the coordinator stores only its hash.
        mesh_secret: the newest epoch's secret, from which each pair of nodes derives its preshared key.
        ray_token: the newest epoch's token of this mesh's Ray.
        map: the first map, so that the tunnel can be set up without another call; a part of it if the request allowed
            that.
        ticket: the node keeps it and presents it if the coordinator has lost the node; empty: none.
        observed: the source address of the request, as the coordinator observed it; empty if it does not report it.
        secret_epoch: the epoch of the two secrets. Older ones still in use come through the agent's connection.
    """

    node_id: str
    credential: str = field(repr=False)
    mesh_secret: MeshSecret
    ray_token: str = field(repr=False)
    map: MeshMap
    observed: str = ""
    ticket: str = field(default="", repr=False)
    secret_epoch: int = FIRST_EPOCH

    def form(self) -> EnrolledForm:
        """Return the form in messages; it is never logged."""
        return EnrolledForm(
            self.node_id,
            self.credential,
            self.mesh_secret.reveal(),
            self.ray_token,
            self.map.form(),
            self.observed,
            self.ticket,
            self.secret_epoch,
        )

    @classmethod
    def from_json(cls, value: object) -> EnrolAnswer:
        """Return the answer in this JSON form. Raises UsageError or WireError."""
        form = convert(value, EnrolledForm)
        return cls(
            form.node_id,
            form.credential,
            MeshSecret.parse(form.mesh_secret),
            form.ray_token,
            MeshMap.of(form.map),
            form.observed,
            form.ticket,
            form.secret_epoch,
        )


def parse_roles(names: Iterable[str]) -> frozenset[str]:
    """Return the roles in a request. Raises WireError if there are others than `REQUESTABLE_ROLES`."""
    roles = frozenset(names)
    if not roles <= REQUESTABLE_ROLES:
        raise WireError(f"roles: a node may request only {' and '.join(sorted(REQUESTABLE_ROLES))}")
    return roles
