"""The requests and answers of the coordinator's HTTP API: their fields, with the bounds that the coordinator checks.

docs/openapi.json is made from them, see `meshray.coordinator.openapi`. An answer also has the field ``schema``, 1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from meshray.protocol.connection import MAX_WAIT_S
from meshray.protocol.fields import (
    FIRST_EPOCH,
    LONGEST_RAY_TOKEN,
    MAX_ITEMS,
    MAX_REVISION,
    Address,
    Counter,
    EndpointText,
    EndpointTexts,
    Epoch,
    Item,
    Items,
    Key,
    Labels,
    MeshName,
    Name,
    Network,
    OwnName,
    Ports,
    Revision,
    SecretKey,
    Signature,
    Text64,
    TicketText,
    Word,
)
from meshray.protocol.forms import AttestationForm, MapForm, NodeForm, RemovalsForm, VersionsForm

#: Characters of the recorded requirements: a few hundred packages. With its escapes the text must fit a request's body.
LONGEST_REQUIREMENTS = 48 * 1024
#: Ten years, in seconds; 0 means that it never expires.
MAX_TTL_S = 10 * 366 * 86400
MAX_USES = 1_000_000
#: The roles that a machine may request; the others follow from its enrolment.
REQUESTABLE_ROLES = frozenset({"head", "hub"})

Password = Annotated[str, Meta(max_length=128, extra_json_schema={"format": "password"})]
Requirements = Annotated[
    str, Meta(max_length=LONGEST_REQUIREMENTS, description="one requirement (PEP 508) a line; empty: none")
]
Roles = Annotated[
    tuple[Annotated[Item, Meta(extra_json_schema={"enum": sorted(REQUESTABLE_ROLES)})], ...], Meta(max_length=MAX_ITEMS)
]
Granted = Annotated[Roles, Meta(description="the additional roles of a node that enrols with the token")]
Uses = Annotated[int, Meta(ge=0, le=MAX_USES, description="0: any number")]
Time = Annotated[float, Meta(description="unix seconds")]
TimeOrNever = Annotated[float | None, Meta(description="unix seconds; null: never")]
BoundName = Annotated[
    Annotated[str, Meta(max_length=63)] | None,
    Meta(description="the name of the node that enrols with it; null: the node chooses"),
]
Replaces = Annotated[bool, Meta(description="that node replaces the one that had this name")]
Lock = Annotated[Key, Meta(description="the public half of the lock that will sign it, if the mesh has a lock")]
#: Any value is a valid or invalid proof: see `meshray.model.proof`.
Proof = Annotated[
    Any,
    Meta(
        description="proves that the sender has the private half of the key: HMAC-SHA256; required",
        extra_json_schema={"type": "string", "maxLength": 64},
    ),
]
Names = tuple[MeshName, ...]
MeshPorts = Annotated[
    Ports, Meta(description="those of the head's Ray that `meshray init` chose, by name; absent: the defaults")
]


class Done(Struct, frozen=True):
    """The operation is done."""


class ErrorDetail(Struct, frozen=True):
    """The reason for a failure; ``hint`` is the next command or step, and may be empty."""

    code: Annotated[str, Meta(max_length=64, pattern="^(?:[a-z][a-z0-9_]*)$")]
    message: Annotated[str, Meta(max_length=4096)]
    hint: Annotated[str, Meta(max_length=4096)]


class Error(Struct, frozen=True):
    """The answer to a request that was refused."""

    error: ErrorDetail
    exit_code: Annotated[int, Meta(ge=1, le=5, description="the exit code of the command line")]
    schema: Literal[1]


class HelloForm(Struct, frozen=True):
    """The mesh, and the key for proofs."""

    mesh: Text64
    name: MeshName
    version: Text64
    proof_key: (
        Annotated[Key, Meta(description="for proofs of a node's own key; it changes with each start")] | UnsetType
    ) = UNSET
    accepted: (
        Annotated[bool, Meta(description="whether the request's credential is a node's; absent: it had none")]
        | UnsetType
    ) = UNSET
    revision: (
        Annotated[int | None, Meta(description="the map's revision; null: the credential is not accepted")] | UnsetType
    ) = UNSET


class Description(Struct, frozen=True):
    """The description of this API."""

    openapi: Literal["3.1.0"]
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


class PresentedToken(Struct, frozen=True):
    """The token of a machine that is not a node yet; its uses do not change."""

    mesh_id: Text64
    token_id: Text64
    secret: Password

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mesh_id!r}, {self.token_id!r}, …)"


class WithdrawForm(PresentedToken, frozen=True):
    """Undo an enrolment whose answer did not arrive."""

    public_key: Key
    proof: Proof | UnsetType = UNSET


class Withdrawn(Struct, frozen=True):
    """The token can be used again."""

    withdrawn: Annotated[bool, Meta(description="whether there was a node to remove")]


class EnrolForm(PresentedToken, frozen=True):
    """A machine's request to become a node."""

    name: Name
    public_key: Key
    name_is_exact: Annotated[bool, Meta(description="a taken name is refused; else it gets a number")] = False
    versions: VersionsForm = VersionsForm()
    with_ray: bool = False
    ephemeral: bool = False
    labels: Labels = {}
    endpoints: EndpointTexts = ()
    roles: Annotated[Roles, Meta(description="the requested roles")] = ()
    follows_epochs: Annotated[bool, Meta(description="its agent follows new epochs of the secrets")] = False
    attestation: AttestationForm | UnsetType = UNSET
    short_map: Annotated[bool, Meta(description="the answer's map needs only this node, the head and the hubs")] = False
    proof: Proof | UnsetType = UNSET


class EnrolledForm(Struct, frozen=True):
    """The machine is now a node."""

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

    def __repr__(self) -> str:
        return f"EnrolledForm({self.node_id!r}, …)"


class EnvironmentForm(Struct, frozen=True):
    """The environment of a node that runs the same Ray as the head."""

    ray: Text64 = ""
    python: Text64 = ""
    requirements: Requirements = ""
    ray_ports: MeshPorts | UnsetType = UNSET


class LockEnvironment(Struct, frozen=True):
    """The packages of the environment beside Ray."""

    requirements: Requirements


class Leave(Struct, frozen=True):
    """The calling node leaves the mesh."""

    take_back: Annotated[bool, Meta(description="the join failed: the token's use is returned")] = False


class RotateKey(Struct, frozen=True):
    """Set the calling node's next key."""

    public_key: Key
    attestation: AttestationForm | UnsetType = UNSET
    proof: Proof | UnsetType = UNSET


class KeyRotated(Struct, frozen=True):
    """The key that the node has from this revision of the map on."""

    public_key: Key
    revision: Revision


class Reach(Struct, frozen=True):
    """The destination of a few packets, and their content."""

    endpoint: EndpointText
    #: 128 random bits, so that no packet of another sender is confused with these.
    word: Annotated[Word, Meta(pattern="^(?:[0-9a-f]{32})$")]


class NewToken(Struct, frozen=True):
    """The permissions of a new token."""

    uses: Uses = 1
    ttl_s: Annotated[int, Meta(ge=0, le=MAX_TTL_S)] = 86400
    ephemeral: bool = False
    roles: Granted = ()
    lock: Lock | UnsetType = UNSET
    name: Annotated[Name, Meta(description="the name of the node that enrols with it; uses must be 1")] | UnsetType = (
        UNSET
    )
    replace: Annotated[bool, Meta(description="that node replaces the one that has this name now")] = False


class CreatedToken(Struct, frozen=True):
    """A new token; only this answer contains its text."""

    token: Annotated[str, Meta(min_length=1, max_length=8192, extra_json_schema={"format": "password"})]
    id: Text64
    uses: Uses
    expires: TimeOrNever
    port: Annotated[int, Meta(ge=1, le=65535)]
    roles: Granted = ()
    name: BoundName = None
    replace: Replaces = False


class TokenForm(Struct, frozen=True):
    """A token, without its secret."""

    id: Text64
    uses: Uses
    used: Annotated[int, Meta(ge=0, le=MAX_REVISION)]
    expires: TimeOrNever
    ephemeral: bool
    created: Time
    revoked: bool
    roles: Granted = ()
    name: BoundName = None
    replace: Replaces = False


class Tokens(Struct, frozen=True):
    """All tokens."""

    tokens: tuple[TokenForm, ...]


class Restored(Struct, frozen=True):
    """The last time that the database turned out to be an older copy.

    Attributes:
        at: when that was detected, unix seconds.
        serial: the serial of the last write that a node knows.
        had: the serial of the last write that the copy had.
        whole: the coordinator's own machine still had the map of that serial, which was restored.
        added: names of the nodes that were missing in the copy and are members again.
        removed: names of the nodes in the copy that had been removed.
    """

    at: Time
    serial: int
    whole: bool
    had: int
    added: Names
    removed: Names


class MemberForm(NodeForm, frozen=True, kw_only=True):
    """A node, and the time of its enrolment."""

    enrolled: Time


class Nodes(Struct, frozen=True):
    """All nodes."""

    mesh: Text64
    revision: Revision
    nodes: tuple[MemberForm, ...]
    restored: Annotated[Restored | None, Meta(description="null: the database never was an older copy")] = None
    lock: Key | UnsetType = UNSET
    removals: RemovalsForm | UnsetType = UNSET


class RemovalSignature(Struct, frozen=True):
    """The lock's signature of the removals with this node."""

    epoch: Counter
    signature: Signature


class RemoveNode(Struct, frozen=True):
    """Remove a node."""

    removal: RemovalSignature | UnsetType = UNSET


class Rotation(Struct, frozen=True):
    """The result of a rotation of the secrets, or the reason why there was none.

    Attributes:
        epoch: the newest epoch now.
        started: whether it is new.
        away: names of the nodes that are not connected; they receive it when they connect.
        static: names of the static peers, which keep the epoch of their file.
        too_old: names of the nodes that cannot follow a new epoch; because of them none was started.
    """

    epoch: Epoch
    started: bool
    away: Names = ()
    static: Names = ()
    too_old: Names = ()


class Named(Struct, frozen=True):
    """A node."""

    name: OwnName
    ip: Address


class NodeRemoved(Named, frozen=True):
    """The node that was removed."""

    secrets: Rotation
    locked: Annotated[bool, Meta(description="the mesh has a lock, and it did not sign this")] | UnsetType = UNSET


class ChangeNode(Struct, frozen=True):
    """A change of a node: exactly one of the two."""

    name: Name | UnsetType = UNSET
    drained: bool | UnsetType = UNSET


class NodeChanged(Named, frozen=True):
    """The node after the change."""

    drained: bool


class AddPeer(Struct, frozen=True):
    """A device without an agent."""

    name: Name
    lock: Lock | UnsetType = UNSET


class PeerHub(Named, frozen=True):
    """The hub of a static peer."""

    public_key: Key
    endpoints: EndpointTexts
    preshared_key: SecretKey


class PeerAdded(Named, frozen=True):
    """The parts of the device's configuration; only this answer contains its key."""

    mesh: Text64
    private_key: SecretKey
    public_key: Key
    network: Network
    hub: PeerHub


class SignPeer(Struct, frozen=True):
    """The signature of the device's key."""

    attestation: AttestationForm


class Endpoints(Struct, frozen=True):
    """Further endpoints at which others reach this machine; in the answer, all of its endpoints."""

    endpoints: EndpointTexts


class StoreCopy(Struct, frozen=True):
    """The copy of the database: the name of a file in the state folder of the coordinator's machine."""

    file: Text64


class AskForm(Struct, frozen=True):
    """A question to agents."""

    op: Word
    nodes: Items = ()
    timeout_s: Annotated[int, Meta(ge=1, le=MAX_WAIT_S)] = 10


class MetricsText(Struct, frozen=True):
    """The coordinator's series.

    Attributes:
        text: in Prometheus' text format 0.0.4.
    """

    text: str


class SilentConnection(Struct, frozen=True):
    """The connection of an agent from which nothing came since the question was sent."""

    received_ago_s: Annotated[float, Meta(ge=0, description="seconds since its machine last sent data")]
    acknowledged: Annotated[
        bool, Meta(description="whether its machine, or a proxy on the path, acknowledges what is sent to it")
    ]


class Gathered(Struct, frozen=True):
    """The answers."""

    answers: Annotated[dict[str, dict[str, Any]], Meta(description="by the node's name")]
    silent: Annotated[
        dict[str, Annotated[str, Meta(max_length=4096)]],
        Meta(description="the nodes without an answer, with the reason"),
    ]
    connections: Annotated[
        dict[str, SilentConnection],
        Meta(description="those from whose agents nothing came: the state of their connections"),
    ] = {}
