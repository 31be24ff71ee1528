"""The parts that several messages share: a node, the map, signatures, tokens.

These are JSON's own types. `meshray.model` makes values of them: `Node.of(form)`, `node.form()`. A field that may be
`UNSET` is omitted if it has no content: few nodes have one of them, and the map of a large mesh is large enough.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from meshray.protocol.fields import (
    DEFAULT_PATIENCE_S,
    MAX_ENDPOINT,
    MAX_PATIENCE_S,
    MIN_PATIENCE_S,
    MOST_REMOVED,
    Address,
    Counter,
    Epoch,
    Faults,
    Item,
    Items,
    Key,
    Labels,
    Mark,
    MeshName,
    Network,
    NodeEndpoints,
    NodeRoles,
    OwnName,
    Ports,
    Revision,
    SecretKey,
    Signature,
    Text64,
)


class GrantForm(Struct, frozen=True):
    """The lock's permission for the holder of a token's key to endorse identities."""

    key: Key
    epoch: Counter
    signature: Signature
    roles: Items = ()


class ChainForm(Struct, frozen=True):
    """The proof that the lock admitted an identity."""

    grant: GrantForm
    signature: Signature


class EndorserForm(Struct, frozen=True):
    """The part of a token that the lock signed."""

    lock: Key
    key: SecretKey
    grant: GrantForm


class AttestationForm(Struct, frozen=True):
    """A signature of a node's WireGuard key by its identity; the chain proves that the lock admitted the identity."""

    identity: Key
    counter: Counter
    signature: Signature
    ip: Address | UnsetType = UNSET
    chain: ChainForm | UnsetType = UNSET


class RemovalsForm(Struct, frozen=True):
    """The identities that the lock removed permanently."""

    epoch: Counter
    identities: Annotated[tuple[Key, ...], Meta(max_length=MOST_REMOVED)]
    signature: Signature


class PinForm(Struct, frozen=True):
    """The accepted identity of another node, as stored by a node."""

    identity: Key
    key: Key
    ip: Address
    counter: Counter
    roles: Items = ()


class VersionsForm(Struct, frozen=True):
    """The versions of a node's programs; empty: none, or not known; cut at 64 characters.

    Attributes:
        meshray: its version.
        ray: the version of the node's Ray; empty: none.
        python: the version of that Ray's interpreter.
        build: identifies the files of meshray; an agent of an older release does not send it.
    """

    meshray: Item = ""
    ray: Item = ""
    python: Item = ""
    build: Item | UnsetType = UNSET


class NodeForm(Struct, frozen=True):
    """A node, as every other node knows it."""

    id: Text64
    name: OwnName
    ip: Address
    public_key: Key
    ray_instance: Text64
    roles: NodeRoles = ()
    endpoints: NodeEndpoints = ()
    seen: Annotated[
        str, Meta(max_length=MAX_ENDPOINT, description="its endpoint as a hub observes it; empty: not over UDP")
    ] = ""
    hubs: Items = ()
    online: bool = False
    ephemeral: bool = False
    drained: bool = False
    down: bool = False
    ended: Annotated[bool, Meta(description="its agent was killed")] = False
    silence: Annotated[
        str,
        Meta(
            max_length=16,
            description="whether it answers the coordinator's node over the overlay",
            extra_json_schema={"enum": ["", "silent", "gone"]},
        ),
    ] = ""
    labels: Labels = {}
    versions: VersionsForm = VersionsForm()
    faults: Faults | UnsetType = UNSET
    secret_epoch: (
        Annotated[Epoch, Meta(description="the newest epoch of the secrets that it holds; absent: 1")] | UnsetType
    ) = UNSET
    attestation: AttestationForm | UnsetType = UNSET
    ray_ports: Annotated[Ports, Meta(description="those of its Ray that it chose for itself, by name")] | UnsetType = (
        UNSET
    )
    no_remote: Annotated[bool, Meta(description="it refuses orders of the mesh's administrator")] | UnsetType = UNSET


class MeshForm(Struct, frozen=True):
    """The properties of a mesh that never change."""

    id: Text64
    name: MeshName
    network: Network
    patience_s: Annotated[
        int,
        Meta(
            ge=MIN_PATIENCE_S,
            le=MAX_PATIENCE_S,
            description="how long Ray waits for a node that does not answer, seconds",
        ),
    ] = DEFAULT_PATIENCE_S
    lock: Key | UnsetType = UNSET
    ray_ports: (
        Annotated[
            Ports,
            Meta(description="those of the head's Ray that `meshray init` chose, by name; absent: the defaults"),
        ]
        | UnsetType
    ) = UNSET


class MapForm(Struct, frozen=True):
    """What every node knows about the others, by node id."""

    mesh: MeshForm
    revision: Revision
    nodes: dict[str, NodeForm] = {}
    mark: Mark = ""
    removals: RemovalsForm | UnsetType = UNSET


class ChangeForm(Struct, frozen=True):
    """The change from one revision of the map to another; null: the node was removed.

    Attributes:
        mark: absent: it has not changed.
        fields: by node id: the changed fields of nodes that are not in ``nodes``; null: the field has no content.
    """

    base: Revision
    revision: Revision
    nodes: dict[str, NodeForm | None] = {}
    mark: Mark | UnsetType = UNSET
    removals: RemovalsForm | UnsetType = UNSET
    fields: dict[str, dict[str, Any]] | UnsetType = UNSET
