"""What the registry is made of, and the row changes by which it tells the store what to write.

>>> record = TokenRecord("3f9a01bc", "…hash…", uses=1, used=1, expires=None, ephemeral=False, created=0.0)
>>> record.refusal(now=60.0), record.is_spent
(None, True)
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from msgspec import structs

from meshray.errors import RefusedError
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Removals
from meshray.model.endpoints import MAX_ENDPOINTS
from meshray.model.keys import MeshSecret
from meshray.model.node import Node
from meshray.protocol.api import MemberForm, Restored, TokenForm

_NEW_TOKEN = "on the head: meshray token create"  # noqa: S105 - a command line, not a secret


@dataclass(frozen=True)
class TokenRecord:
    """What the coordinator keeps of a token.

    Attributes:
        secret_hash: of the secret; the secret itself is known only to who holds the token.
        uses: how many nodes it may enrol; 0 means any number.
        used: how many it did enrol.
        expires: unix seconds; None means never.
        ephemeral: nodes that enrol with it are ephemeral.
        roles: what a node that enrols with it may be beyond a node: of `meshray.model.enrol.WISHES`.
        name: the node name that it is bound to; None: the joining machine chooses its name.
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
        """Why nobody may use it any more, None where somebody may."""
        if self.revoked:
            return RefusedError("token_revoked", f"token {self.id} was revoked", hint=_NEW_TOKEN)
        if self.expires is not None and now >= self.expires:
            age = _duration(now - self.expires)
            return RefusedError("token_expired", f"token {self.id} expired {age} ago", hint=_NEW_TOKEN)
        return None

    def spent(self) -> RefusedError:
        """The refusal of a further node."""
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
class Freed:
    """When an overlay address became free, and who had it.

    Attributes:
        at: unix seconds.
        name: of the node that had it; empty: not known.
        failed: its join failed, so that nobody came to rely on it; the next join of that name gets the address.
    """

    at: float
    name: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Member:
    """What the coordinator keeps of a node, beyond what every node may know of it.

    Attributes:
        credential_hash: of what the node shows with every call; empty for a static peer, which makes none.
        token_id: the token by which it enrolled, empty for the first node and for static peers.
        advertised: endpoints that a user gave; they come first, and only a user takes them back.
        reported: endpoints that its agent found.
        reached: at which endpoint its agent is connected to the coordinator, where others may reach it there as well.
        enrolled: unix seconds.
        had_map: whether the node's agent ever received a whole map over its connection: only then it came online.
        follows_epochs: its agent takes over new epochs of the mesh's secrets; one of an older meshray does not.
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
        """Return the member with the endpoints that the map is to show.

        Args:
            reached: where others reached this node; these come last.
        """
        known = dict.fromkeys((*self.advertised, *self.reported, *reached))
        return replace(self, node=replace(self.node, endpoints=tuple(known)[:MAX_ENDPOINTS]))


@dataclass(frozen=True)
class SecretEpoch:
    """One epoch of what all members share.

    Attributes:
        number: counts from 1.
        mesh_secret: from which pairs derive their preshared keys.
        ray_token: Ray's, for every start of the head's Ray until the next epoch.
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
        """An epoch with new random secrets."""
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
class PutFreed:
    """Note when this address became free, and who had it."""

    address: IPv4Address
    freed: Freed


@dataclass(frozen=True)
class DropFreed:
    """This address has rested long enough."""

    address: IPv4Address


@dataclass(frozen=True)
class PutRevision:
    """No revision up to this one may be given out again after a restart."""

    reserved: int


@dataclass(frozen=True)
class PutTimeline:
    """This run of the coordinator has written up to this serial; see `meshray.coordinator.restore.lineage`."""

    timeline: str
    serial: int


@dataclass(frozen=True)
class PutRestored:
    """The database turned out to be an older copy."""

    restored: Restored


@dataclass(frozen=True)
class PutRemovals:
    """What the lock has removed."""

    removals: Removals


@dataclass(frozen=True)
class PutRequirements:
    """What `meshray env lock` recorded."""

    requirements: str


@dataclass(frozen=True)
class PutEpoch:
    """Write this epoch's row."""

    epoch: SecretEpoch


@dataclass(frozen=True)
class DropEpoch:
    """Nobody needs this epoch any more."""

    number: int


RowChange = (
    PutMember
    | DropMember
    | PutToken
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
