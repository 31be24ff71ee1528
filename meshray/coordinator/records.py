"""The records of the registry, and the row changes that the store writes.

>>> record = TokenRecord("3f9a01bc", "…hash…", uses=1, used=1, expires=None, ephemeral=False, created=0.0)
>>> record.refusal(now=60.0), record.is_spent
(None, True)
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from msgspec import structs

from meshray.errors import RefusedError
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Removals
from meshray.model.endpoints import MAX_ENDPOINTS
from meshray.model.keys import MeshSecret, PresharedKey, PrivateKey
from meshray.model.meshmap import MeshInfo
from meshray.model.node import Node
from meshray.model.permission_level import Level
from meshray.protocol.api import MemberForm, Restored, TokenForm
from meshray.protocol.passes import PassForm

#: The number of the coordinator's endpoints, as reached by members, that others get.
MOST_REACHED = 4
_NEW_TOKEN = "on the head: meshray token create"  # noqa: S105 - a command line, not a secret


@dataclass(frozen=True)
class Settings:
    """The settings that `meshray init` chose once.

    Attributes:
        port: UDP for WireGuard, TCP for the coordinator.
    """

    mesh: MeshInfo
    port: int


@dataclass(frozen=True)
class TokenRecord:
    """The coordinator's record of a token.

    Attributes:
        secret_hash: the hash of the secret, which only the token's holder knows.
        uses: how many nodes it may enrol; 0 means any number.
        used: how many it has enrolled.
        expires: unix seconds; None means never.
        ephemeral: nodes that enrol with it are ephemeral.
        roles: the additional roles that a node may get with it, from `meshray.model.enrol.REQUESTABLE_ROLES`.
        name: the node name to which it is bound; None: the joining machine chooses its name.
        replaces: the id of the node whose name and address the new node takes over; empty: it replaces none.
    """

    id: str
    secret_hash: str = field(repr=False)
    uses: int
    used: int
    expires: float | None
    ephemeral: bool
    created: float
    revoked: bool = False
    roles: frozenset[str] = frozenset()
    name: NodeName | None = None
    replaces: str = ""

    @property
    def is_spent(self) -> bool:
        """Whether no further node may enrol with it."""
        return self.uses > 0 and self.used >= self.uses

    def refusal(self, now: float) -> RefusedError | None:
        """Return why it may no longer be used; None if it may."""
        if self.revoked:
            return RefusedError("token_revoked", f"token {self.id} was revoked", hint=_NEW_TOKEN)
        if self.expires is not None and now >= self.expires:
            age = _duration(now - self.expires)
            return RefusedError("token_expired", f"token {self.id} expired {age} ago", hint=_NEW_TOKEN)
        return None

    def spent(self) -> RefusedError:
        """Return the refusal of a further node."""
        times = "once" if self.uses == 1 else f"{self.uses} times"
        return RefusedError("token_used_up", f"token {self.id} was good for {times} and is used up", hint=_NEW_TOKEN)

    def form(self) -> TokenForm:
        """Return one entry of the answer to GET /v1/tokens."""
        return TokenForm(
            id=self.id,
            uses=self.uses,
            used=self.used,
            expires=self.expires,
            ephemeral=self.ephemeral,
            created=self.created,
            revoked=self.revoked,
            roles=tuple(sorted(self.roles)),
            name=self.name,
            replace=bool(self.replaces),
        )


@dataclass(frozen=True)
class PassRecord:
    """The coordinator's record of a pass: the right of one browser to open the coordinator's page.

    Attributes:
        name: chosen by the administrator; unique among the passes that still work.
        secret_hash: the hash of the secret in the pass's URL.
        created, expires: unix seconds; the session of the pass ends with it.
        used: when a browser exchanged the pass for a session, unix seconds; None: not yet.
        session_hash: the hash of the secret in that browser's cookie; empty before.
        revoked: unix seconds; None: not revoked.
    """

    id: str
    name: str
    secret_hash: str = field(repr=False)
    level: Level
    created: float
    expires: float
    used: float | None = None
    session_hash: str = field(default="", repr=False)
    revoked: float | None = None

    def ended(self, now: float) -> float | None:
        """Return since when neither the pass nor its session works, unix seconds; None while one of them does."""
        if self.revoked is not None:
            return min(self.revoked, self.expires)
        return self.expires if now >= self.expires else None

    def form(self) -> PassForm:
        """Return one entry of the answer to GET /v1/web/passes."""
        return PassForm(
            id=self.id,
            name=self.name,
            level=self.level.word,
            created=self.created,
            expires=self.expires,
            used=self.used,
            revoked=self.revoked is not None,
        )


@dataclass(frozen=True)
class Freed:
    """When an overlay address became free, and the node that had it.

    Attributes:
        at: unix seconds.
        name: the name of that node; empty: not known.
        failed: its join failed, so no node relies on it; the next join of that name gets the address.
    """

    at: float
    name: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Member:
    """The coordinator's record of a node: more than every node may know about it.

    Attributes:
        credential_hash: the hash of the credential in the node's calls; empty for a static peer, which makes none.
        token_id: the token with which it enrolled; empty for the first node and for static peers.
        advertised: endpoints from a user; they come first, and only a user removes them.
        reported: endpoints that its agent found.
        reached: the endpoint at which its agent reached the coordinator, if others may use it as well.
        enrolled: unix seconds.
        had_map: whether the node's agent ever received a whole map over its connection: only then was it online.
        follows_epochs: its agent follows new epochs of the mesh's secrets; an older meshray does not.
    """

    node: Node
    credential_hash: str = field(repr=False)
    token_id: str
    advertised: tuple[Endpoint, ...]
    enrolled: float
    had_map: bool = False
    reported: tuple[Endpoint, ...] = ()
    reached: Endpoint | None = None
    follows_epochs: bool = False

    def form(self) -> MemberForm:
        """Return one entry of the answer to GET /v1/nodes."""
        return MemberForm(**structs.asdict(self.node.form()), enrolled=self.enrolled)

    def published(self, reached: Iterable[Endpoint] = ()) -> Member:
        """Return the member with the endpoints for the map.

        Args:
            reached: the endpoints at which others reached this node; these come last.
        """
        known = dict.fromkeys((*self.advertised, *self.reported, *reached))
        return replace(self, node=replace(self.node, endpoints=tuple(known)[:MAX_ENDPOINTS]))


def most_reached(members: Iterable[Member]) -> list[Endpoint]:
    """Return the endpoints at which members reached the coordinator, the most frequent first.

    A member may report a wrong one: it costs the others a failed attempt, since only the right certificate and the
    right key are accepted.
    """
    counts = Counter(member.reached for member in members if member.reached is not None)
    return [endpoint for endpoint, _ in counts.most_common(MOST_REACHED)]


@dataclass(frozen=True)
class StaticPeer:
    """The configuration of a device with wg-quick only. Its key is shown once and not stored."""

    node: Node
    private_key: PrivateKey
    hub: Node
    preshared_key: PresharedKey


@dataclass(frozen=True)
class SecretEpoch:
    """One epoch of the secrets that all members share.

    Attributes:
        number: counts from 1.
        mesh_secret: the secret from which pairs derive their preshared keys.
        ray_token: Ray's token, for every start of the head's Ray until the next epoch.
        began: unix seconds.
        retired: no pair of nodes with agents uses it; a static peer or the head's running Ray still does.
    """

    number: int
    mesh_secret: MeshSecret = field(repr=False)
    ray_token: str = field(repr=False)
    began: float
    retired: bool = False

    @classmethod
    def make(cls, number: int, began: float) -> SecretEpoch:
        """Return an epoch with new random secrets."""
        return cls(number, MeshSecret.generate(), secrets.token_hex(32), began)


@dataclass(frozen=True)
class PutMember:
    """Write this node's row."""

    member: Member


@dataclass(frozen=True)
class DropMember:
    """Delete this node's row."""

    node_id: str


@dataclass(frozen=True)
class PutToken:
    """Write this token's row."""

    token: TokenRecord


@dataclass(frozen=True)
class PutPass:
    """Write this pass's row."""

    record: PassRecord


@dataclass(frozen=True)
class DropPass:
    """Delete this pass's row."""

    pass_id: str


@dataclass(frozen=True)
class PutFreed:
    """Record when this address became free, and the node that had it."""

    address: IPv4Address
    freed: Freed


@dataclass(frozen=True)
class DropFreed:
    """Delete the record of this address, whose cool-down is over."""

    address: IPv4Address


@dataclass(frozen=True)
class PutRevision:
    """Reserve the revisions up to this one: none of them may be used again after a restart."""

    reserved: int


@dataclass(frozen=True)
class PutTimeline:
    """Record that this run of the coordinator has written up to this serial; see `restore.lineage`."""

    timeline: str
    serial: int


@dataclass(frozen=True)
class PutRestored:
    """Record that the database turned out to be an older copy."""

    restored: Restored


@dataclass(frozen=True)
class PutRemovals:
    """Write the removals signed by the lock."""

    removals: Removals


@dataclass(frozen=True)
class PutRequirements:
    """Write the requirements that `meshray env lock` recorded."""

    requirements: str


@dataclass(frozen=True)
class PutEpoch:
    """Write this epoch's row."""

    epoch: SecretEpoch


@dataclass(frozen=True)
class DropEpoch:
    """Delete this epoch's row."""

    number: int


RowChange = (
    PutMember
    | DropMember
    | PutToken
    | PutPass
    | DropPass
    | PutFreed
    | DropFreed
    | PutRevision
    | PutTimeline
    | PutRestored
    | PutRequirements
    | PutEpoch
    | DropEpoch
    | PutRemovals
)
RowChanges = tuple[RowChange, ...]


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
