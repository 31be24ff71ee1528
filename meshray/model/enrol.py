"""What a machine says to become a node, and what it is told. POST /v1/enroll carries these two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.model import wire
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Attestation, optional_attestation
from meshray.model.keys import MeshSecret, PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HEAD, HUB, Versions
from meshray.protocol.codec import WireError
from meshray.protocol.fields import FIRST_EPOCH, LONGEST_RAY_TOKEN, LONGEST_TICKET, MAX_EPOCH

#: With these an agent tells, when it connects, what it knows of the coordinator's past.
MARK_HEADER, TICKET_HEADER = "Meshray-Mark", "Meshray-Ticket"
#: With this it sends a random word that is its process's own: two machines with one identity are told apart by it.
INSTANCE_HEADER = "Meshray-Instance"
LONGEST_INSTANCE = 32
#: The roles that a machine may ask for; the others follow from what it is.
WISHES = frozenset({HEAD, HUB})


@dataclass(frozen=True)
class EnrolRequest:
    """A machine asks to become a node.

    Attributes:
        mesh_id: the mesh that the token names; another mesh's coordinator refuses.
        name_is_exact: the user chose the name, so a taken one is refused; else it gets a number.
        with_ray: the node will run Ray; as a worker its versions must match the head's.
        endpoints: where its WireGuard may be reached, given by a user; they are kept.
        roles: what it wants to be beyond a node, of `WISHES`.
        follows_epochs: its agent takes over new epochs of the mesh's secrets.
        attestation: its identity's signature of the key; None: its meshray is of an earlier release.
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

    def to_json(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "mesh_id": self.mesh_id,
            "token_id": self.token_id,
            "secret": self.secret,
            "name": self.name,
            "name_is_exact": self.name_is_exact,
            "public_key": str(self.public_key),
            "versions": self.versions.to_json(),
            "with_ray": self.with_ray,
            "ephemeral": self.ephemeral,
            "labels": dict(self.labels),
            "endpoints": [str(endpoint) for endpoint in self.endpoints],
            "roles": sorted(self.roles),
            "follows_epochs": self.follows_epochs,
            **({"attestation": self.attestation.to_json()} if self.attestation is not None else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> EnrolRequest:
        """The inverse of `to_json`. Raises UsageError or WireError."""
        return cls(
            mesh_id=wire.text(value, "mesh_id", 64),
            token_id=wire.text(value, "token_id", 64),
            secret=wire.text(value, "secret", 128),
            name=NodeName.parse(wire.text(value, "name", 63)),
            name_is_exact=wire.flag(value, "name_is_exact"),
            public_key=PublicKey.parse(wire.text(value, "public_key", 44)),
            versions=Versions.from_json(wire.mapping(value, "versions")),
            with_ray=wire.flag(value, "with_ray"),
            ephemeral=wire.flag(value, "ephemeral"),
            labels=wire.printable_map(value, "labels"),
            endpoints=tuple(Endpoint.parse(item) for item in wire.texts(value, "endpoints")),
            roles=roles_from_json(value),
            follows_epochs=wire.flag(value, "follows_epochs"),
            attestation=optional_attestation(value),
        )


@dataclass(frozen=True)
class EnrolAnswer:
    """The machine is a node now.

    Attributes:
        credential: what every later call carries; the coordinator stores only its hash.
        mesh_secret: from which each pair of nodes derives its preshared key; of the newest epoch.
        ray_token: Ray's own token of this mesh, of the newest epoch.
        map: the first map, so that the tunnel can be set up without another call.
        ticket: what the node keeps and shows again, should the coordinator have forgotten it; empty: none.
        observed: the address from which the request came, as the coordinator sees it; empty where it does not tell.
        secret_epoch: the epoch of the two secrets. Older ones that are still in use come over the agent's connection.
    """

    node_id: str
    credential: str = field(repr=False)
    mesh_secret: MeshSecret
    ray_token: str = field(repr=False)
    map: MeshMap
    observed: str = ""
    ticket: str = field(default="", repr=False)
    secret_epoch: int = FIRST_EPOCH

    def to_json(self) -> dict[str, object]:
        """The JSON form; it holds secrets and is never logged."""
        return {
            "node_id": self.node_id,
            "credential": self.credential,
            "mesh_secret": self.mesh_secret.reveal(),
            "ray_token": self.ray_token,
            "map": self.map.to_json(),
            "observed": self.observed,
            "ticket": self.ticket,
            "secret_epoch": self.secret_epoch,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> EnrolAnswer:
        """The inverse of `to_json`. Raises UsageError or WireError."""
        return cls(
            wire.text(value, "node_id", 64),
            wire.text(value, "credential", 128),
            MeshSecret.parse(wire.text(value, "mesh_secret", 44)),
            wire.text(value, "ray_token", LONGEST_RAY_TOKEN),
            MeshMap.from_json(wire.mapping(value, "map")),
            wire.text(value, "observed", 45, ""),
            wire.text(value, "ticket", LONGEST_TICKET, ""),
            wire.number(value, "secret_epoch", FIRST_EPOCH, MAX_EPOCH, FIRST_EPOCH),
        )


def roles_from_json(value: Mapping[str, object]) -> frozenset[str]:
    """Return the field ``roles`` of a request. Raises WireError where it has others than `WISHES`."""
    roles = frozenset(wire.texts(value, "roles"))
    if not roles <= WISHES:
        raise WireError(f"roles: a node may ask for {' and '.join(sorted(WISHES))} only")
    return roles
