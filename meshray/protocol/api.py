"""The requests and answers of the coordinator's HTTP API. docs/openapi.json is made from them."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from meshray.protocol.fields import (
    FIRST_EPOCH,
    LONGEST_RAY_TOKEN,
    EndpointTexts,
    Epoch,
    Key,
    Labels,
    Name,
    Ports,
    SecretKey,
    Text64,
    TicketText,
)
from meshray.protocol.forms import AttestationForm, MapForm, VersionsForm

#: Characters of the recorded requirements: a few hundred packages. With its escapes it must fit a request's body.
LONGEST_REQUIREMENTS = 48 * 1024

Password = Annotated[str, Meta(max_length=128, extra_json_schema={"format": "password"})]
Requirements = Annotated[
    str, Meta(max_length=LONGEST_REQUIREMENTS, description="one requirement (PEP 508) a line; empty: none")
]
#: The roles that a machine may ask for; the others follow from what it is.
WISHES = frozenset({"head", "hub"})
Roles = Annotated[
    tuple[Annotated[str, Meta(max_length=512, extra_json_schema={"enum": sorted(WISHES)})], ...],
    Meta(max_length=64),
]


class ShownTokenForm(Struct, frozen=True):
    """What a machine that is no node yet shows of its token."""

    mesh_id: Text64
    token_id: Text64
    secret: Password


class EnrolForm(ShownTokenForm, frozen=True):
    """A machine asks to become a node."""

    name: Name
    public_key: Key
    name_is_exact: Annotated[bool, Meta(description="a taken name is refused; else it gets a number")] = False
    versions: VersionsForm = VersionsForm()
    with_ray: bool = False
    ephemeral: bool = False
    labels: Labels = {}
    endpoints: EndpointTexts = ()
    roles: Annotated[Roles, Meta(description="what it wants to be beyond a node")] = ()
    follows_epochs: Annotated[bool, Meta(description="its agent takes over new epochs of the secrets")] = False
    attestation: AttestationForm | UnsetType = UNSET


class EnrolledForm(Struct, frozen=True):
    """The machine is a node now."""

    node_id: Text64
    credential: Password
    mesh_secret: SecretKey
    ray_token: Annotated[str, Meta(max_length=LONGEST_RAY_TOKEN, extra_json_schema={"format": "password"})]
    map: MapForm
    observed: Annotated[
        str, Meta(max_length=45, description="the address from which the request came; empty: not known")
    ] = ""
    ticket: TicketText = ""
    secret_epoch: Annotated[Epoch, Meta(description="of mesh_secret and ray_token")] = FIRST_EPOCH


class EnvironmentForm(Struct, frozen=True):
    """What a node needs that shall run the same Ray as the head."""

    ray: Text64 = ""
    python: Text64 = ""
    requirements: Requirements = ""
    ray_ports: (
        Annotated[
            Ports,
            Meta(description="those of the head's Ray that `meshray init` chose, by name; absent: the defaults"),
        ]
        | UnsetType
    ) = UNSET
