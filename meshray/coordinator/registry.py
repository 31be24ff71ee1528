"""The members of the mesh, their addresses and tokens: all rules, and no I/O.

A `Registry` is immutable. Each method takes the time, and returns the next registry, the rows that the store must write
before the request is answered, and the answer; or it raises, and nothing changed.

>>> registry, rows, member = registry.enrol(request, node_id="n2", credential_hash="…", compare=compare, now=0.0)
>>> rows
(PutMember(…), PutRevision(…), PutToken(…))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address
from typing import Any, TypeAlias, TypeVar

from meshray.coordinator.admission import (
    ConflictError,
    UnknownError,
    as_requested,
    free_name,
    name_of,
    reenrolled,
    require_may_reenrol,
    roles_of,
    token_of,
)
from meshray.coordinator.allocation import allocate, freed_by, is_cooling_down, previous_address
from meshray.coordinator.locking import require_attested
from meshray.coordinator.member_index import MemberIndex
from meshray.coordinator.records import (
    DropFreed,
    DropMember,
    Freed,
    Member,
    PassRecord,
    PutFreed,
    PutMember,
    PutRevision,
    PutToken,
    RowChange,
    RowChanges,
    SecretEpoch,
    TokenRecord,
    most_reached,
)
from meshray.coordinator.restore.lineage import Lineage
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Removals
from meshray.model.endpoints import MAX_ENDPOINTS, is_public, require_few
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshInfo, MeshMap
from meshray.model.node import COORDINATOR, GONE, HEAD, HUB, SILENT, STATIC, WORKER, Node, Versions

#: An ephemeral node is removed this long after its agent's connection ended, seconds: within a minute, including the
#: interval of the check. That is longer than a short network outage.
EPHEMERAL_GRACE_S = 50.0
#: After a restart of the coordinator all agents must reconnect first.
RESTART_GRACE_S = 120.0
#: An ephemeral node that never requested its map may still be starting; after this time it is removed.
NEVER_ONLINE_GRACE_S = 3600.0
#: A failed join withdraws itself within this time, seconds: Ray may start for minutes before it fails.
WITHDRAWAL_S = 900.0
#: The number of revisions that one write reserves: presence changes the map often and is not stored.
REVISION_BLOCK = 1000

T = TypeVar("T")
Outcome: TypeAlias = "tuple[Registry, RowChanges, T]"
#: Raise if the first versions are incompatible with the head's, the second.
CompareVersions = Callable[[Versions, Versions], None]


@dataclass(frozen=True)
class Registry:
    """The state of one mesh.

    Attributes:
        members: by node id.
        tokens: by token id.
        freed: when a used address became free, and which node had it. A record lasts for an hour, even if the address
            went back to its name meanwhile: if that node never comes online, the cool-down continues.
        deadlines: when an absent ephemeral node is removed, unix seconds, by node id.
        revision: the map's revision; it increases by one with each change that other nodes can see.
        reserved: no revision up to this one is used again after a restart.
        requirements: those that `meshray env lock` recorded.
        lineage: the history of writes, which identifies a restored copy.
        epochs: the mesh's secrets, oldest first; see `meshray.coordinator.secret_epochs`.
        removals: removals signed by the lock; None: none, or there is no lock.
        passes: those of the coordinator's page, by their ids; see `meshray.coordinator.passes`.
    """

    mesh: MeshInfo
    members: Mapping[str, Member] = field(default_factory=dict)
    tokens: Mapping[str, TokenRecord] = field(default_factory=dict)
    freed: Mapping[IPv4Address, Freed] = field(default_factory=dict)
    deadlines: Mapping[str, float] = field(default_factory=dict)
    revision: int = 0
    reserved: int = 0
    requirements: str = ""
    lineage: Lineage = field(default=Lineage(), compare=False)
    epochs: tuple[SecretEpoch, ...] = ()
    removals: Removals | None = None
    passes: Mapping[str, PassRecord] = field(default_factory=dict)
    # The index, and the members to which it belongs.
    indexed: tuple[Mapping[str, Member], MemberIndex] | None = field(default=None, compare=False, repr=False)

    # ---- queries

    @cached_property
    def index(self) -> MemberIndex:
        """The members by name, key, address and credential."""
        if self.indexed is not None and self.indexed[0] is self.members:
            return self.indexed[1]
        return MemberIndex.of(self.members)

    @cached_property
    def map(self) -> MeshMap:
        """The map, which every node may know."""
        nodes = {key: member.node for key, member in self.members.items()}
        return MeshMap(self.mesh, self.revision, nodes, removals=self.removals)

    def short_map(self, node_id: str) -> MeshMap:
        """Return what a new node needs of the map: its own entry, the head, hubs and coordinator. It has no mark."""
        nodes = {key: self.members[key].node for key in (*self.index.special, node_id) if key in self.members}
        return MeshMap(self.mesh, self.revision, nodes, removals=self.removals)

    def with_credential(self, credential_hash: str) -> Member | None:
        """Return the member with this credential; None if there is none."""
        return self.members.get(self.index.credentials.get(credential_hash, ""))

    def with_role(self, role: str) -> list[Node]:
        """Return the nodes with this role, one of head, hub and coordinator, in the order of their addresses."""
        special = (self.members[key].node for key in self.index.special)
        return sorted((node for node in special if role in node.roles), key=lambda node: node.ip)

    def named(self, name: str) -> Member:
        """Return the member with this name. Raises UnknownError, code ``node_unknown``."""
        member = self.members.get(self.index.names.get(name.lower(), ""))
        if member is not None:
            return member
        raise UnknownError("node_unknown", f"there is no node {name[:63]!r} in this mesh", hint="meshray node list")

    # ---- enrolment and removal

    def enrol_first(
        self, node: Node, credential_hash: str, now: float, advertised: tuple[Endpoint, ...] = ()
    ) -> Outcome[Member]:
        """Enrol the first node of a new mesh: head, hub and coordinator; its address is allocated here."""
        first = replace(node, ip=self._address(now))
        return self.put(Member(first, credential_hash, "", advertised, now, follows_epochs=True))

    def enrol(
        self,
        request: EnrolRequest,
        *,
        node_id: str,
        credential_hash: str,
        compare: CompareVersions,
        now: float,
        wall: float | None = None,
        address: IPv4Address | None = None,
    ) -> Outcome[Member]:
        """Enrol a machine as a new node, or, if its key is known, as the same node again.

        Args:
            node_id: for a new node; random, never used before.
            wall: unix seconds by which tokens expire, if that is another clock than ``now``.
            address: the address of the node that the new one replaces, which is free.
            credential_hash: the hash of the node's new credential.

        Raises:
            RefusedError: token_other_mesh, token_unknown, token_revoked, token_expired, token_used_up,
                token_other_name, name_taken, key_taken, head_exists, role_not_granted; or as `require_attested` does.
            UsageError: hub_needs_endpoint.
            MeshrayError: network_full, or what ``compare`` raises.
        """
        wall = now if wall is None else wall
        token = token_of(request, self.mesh, self.tokens, wall)
        known = self.with_key(request.public_key)
        head = next(iter(self.with_role(HEAD)), None)
        roles = roles_of(request, token, known, head)
        if WORKER in roles and head is not None and head.versions.ray:
            compare(request.versions, head.versions)
        attestation = require_attested(request, self.mesh, known, self.removals)
        if known is not None:
            require_may_reenrol(known, token)
        elif token.is_spent:
            raise token.spent()
        name = name_of(request, token, known, self.index.names.keys(), self._reserved(wall))
        if known is not None:
            member = reenrolled(known, request, token, name=name, roles=roles, attestation=attestation)
            registry, rows = self._put(replace(member, credential_hash=credential_hash))
            return registry._await_first_map(member.node, now), rows, registry.members[member.node.id]
        ip = address or previous_address(self.freed, self.index.addresses, name, token) or self._address(now)
        node = as_requested(Node(node_id, name, ip, request.public_key, roles), request, token, attestation)
        used = replace(token, used=token.used + 1)
        registry, rows = self._put(Member(node, credential_hash, token.id, node.endpoints, now))
        registry = replace(registry, tokens={**self.tokens, token.id: used})
        return registry._await_first_map(node, now), (*rows, PutToken(used)), registry.members[node_id]

    def add_static(self, name: NodeName, public_key: PublicKey, node_id: str, now: float) -> Outcome[Member]:
        """Add a device without an agent. Raises RefusedError name_taken, MeshrayError network_full."""
        node = Node(
            node_id,
            free_name(name, self.index.names, exact=True),
            self._address(now),
            public_key,
            frozenset({STATIC}),
        )
        return self.put(Member(node, "", "", (), now))

    def remove(self, node_id: str, now: float, *, take_back: bool = False) -> Outcome[Member]:
        """Remove the node. Its address cools down for an hour, unless the node never came online.

        Args:
            take_back: its join failed on its side: if that was just now, the token's use is returned, and the next join
                of that name gets the address.

        Raises:
            UnknownError: there is no such node.
            ConflictError: the node that runs the coordinator cannot be removed.
        """
        member = self.member(node_id)
        if COORDINATOR in member.node.roles:
            raise ConflictError(
                "node_is_coordinator",
                f"{member.node.name} runs the coordinator of this mesh and cannot be removed",
                hint=f"to end the whole mesh, on {member.node.name}: meshray leave",
            )
        failed = take_back and now - member.enrolled <= WITHDRAWAL_S
        registry = replace(
            self,
            **self._replaced(node_id, None),
            deadlines=_without(self.deadlines, node_id),
        )
        rows: RowChanges = (DropMember(node_id),)
        address, entry = member.node.ip, freed_by(member, now, failed=failed)
        if entry is not None:
            registry, rows = replace(registry, freed={**self.freed, address: entry}), (*rows, PutFreed(address, entry))
        registry, rows = registry.next_revision(rows)
        token = self.tokens.get(member.token_id)
        if failed and token is not None:
            unused = replace(token, used=max(0, token.used - 1))
            registry, rows = replace(registry, tokens={**self.tokens, token.id: unused}), (*rows, PutToken(unused))
        if member.reached is not None:
            registry, more = registry._publish_coordinator()
            rows = (*rows, *more)
        return registry, rows, member

    def rename(self, name: str, new: NodeName) -> Outcome[Member]:
        """Rename a node, which stays the same node. Raises UnknownError, RefusedError name_taken."""
        member = self.named(name)
        if member.node.name == new:
            return self, (), member
        return self.put(replace(member, node=replace(member.node, name=free_name(new, self.index.names, exact=True))))

    def drain(self, name: str, drained: bool) -> Outcome[Member]:
        """Set whether Ray stays away from the node. Raises UnknownError, ConflictError."""
        member = self.named(name)
        if WORKER not in member.node.roles:
            raise ConflictError(
                "not_a_worker", f"{member.node.name} runs no Ray worker that could be drained", hint="meshray node list"
            )
        return self.put(replace(member, node=replace(member.node, drained=drained)))

    def put(self, member: Member) -> Outcome[Member]:
        """Replace the member by a changed one; the caller has checked that the change is allowed."""
        return *self._put(member), member

    def collect(self, now: float) -> Outcome[tuple[Member, ...]]:
        """Remove the ephemeral nodes that stayed away, and forget addresses whose cool-down is over."""
        cooled_down = [address for address, entry in self.freed.items() if not is_cooling_down(entry.at, now)]
        registry = replace(self, freed={key: entry for key, entry in self.freed.items() if key not in cooled_down})
        rows: list[RowChange] = [DropFreed(address) for address in cooled_down]
        expired: list[Member] = []
        for node_id, deadline in self.deadlines.items():
            if now >= deadline:
                registry, dropped, member = registry.remove(node_id, now)
                rows.extend(dropped)
                expired.append(member)
        return registry, tuple(rows), tuple(expired)

    # ---- reports of agents

    def member(self, node_id: str) -> Member:
        """Return the member with this id. Raises UnknownError, code ``node_unknown``."""
        member = self.members.get(node_id)
        if member is None:
            raise UnknownError("node_unknown", "this node is no longer in the mesh", hint="meshray leave")
        return member

    def restarted(self, now: float) -> Registry:
        """Return the registry after the coordinator's start: all nodes are away, and ephemeral ones may return."""
        return replace(
            self,
            deadlines={
                key: now + (RESTART_GRACE_S if member.had_map else NEVER_ONLINE_GRACE_S)
                for key, member in self.members.items()
                if member.node.ephemeral
            },
        )

    def connected(self, node_id: str) -> Outcome[Member]:
        """Record that the node's agent is connected. Raises UnknownError."""
        member = self.member(node_id)
        online = replace(member, node=replace(member.node, online=True, down=False, ended=False))
        registry, rows = self._put(online, stored=member.node.down)
        registry = replace(registry, deadlines=_without(self.deadlines, node_id))
        return registry, rows, member

    def taken_down(self, node_id: str) -> Outcome[Member]:
        """Record that a user takes the node down: its absence is not a fault. Raises UnknownError."""
        member = self.member(node_id)
        return self.put(replace(member, node=replace(member.node, down=True)))

    def disconnected(self, node_id: str, now: float, *, ended: bool = False) -> Outcome[None]:
        """Record that the node's agent disconnected; do nothing if the node was removed.

        Args:
            ended: its machine closed the connection without a goodbye.
        """
        member = self.members.get(node_id)
        if member is None:
            return self, (), None
        away = replace(member.node, online=False, ended=ended and not member.node.down)
        registry, rows = self._put(replace(member, node=away, reached=None), stored=False)
        if member.reached is not None:
            registry, rows = registry._publish_coordinator()
        if member.node.ephemeral:
            grace = EPHEMERAL_GRACE_S if member.had_map else NEVER_ONLINE_GRACE_S
            registry = replace(registry, deadlines={**self.deadlines, node_id: now + grace})
        return registry, rows, None

    def map_received(self, node_id: str) -> Outcome[None]:
        """Record that the agent received a whole map: the node is online, and an ephemeral one may be removed later."""
        member = self.members.get(node_id)
        if member is None or member.had_map:
            return self, (), None
        return *self._put(replace(member, had_map=True)), None

    def reported(
        self,
        node_id: str,
        versions: Versions,
        endpoints: tuple[Endpoint, ...],
        hubs: tuple[str, ...] = (),
        reached: Endpoint | None = None,
    ) -> Outcome[None]:
        """Record an agent's report, sent when it connects and when it changes. Raises UnknownError.

        Args:
            hubs: ids of the hubs that it can use; other ids are ignored.
            reached: the endpoint at which it reached the coordinator. Other nodes may need it as well: the map shows it
                for the coordinator while this node is connected there.
        """
        member = self.member(node_id)
        known_hubs = {hub.id for hub in self.with_role(HUB)}
        usable = tuple(dict.fromkeys(hub for hub in hubs if hub in known_hubs))
        node, is_useful = replace(member.node, versions=versions, hubs=usable), COORDINATOR not in member.node.roles
        updated = replace(
            member,
            node=node,
            reported=endpoints[:MAX_ENDPOINTS],
            reached=reached if is_useful and reached and is_public(reached, self.mesh.network) else None,
        )
        registry, rows = self._publish(updated)
        if updated.reached == member.reached:
            return registry, rows, None
        registry, more = registry._publish_coordinator()
        return registry, (*rows, *more), None

    def advertise(self, node_id: str, endpoints: tuple[Endpoint, ...]) -> Outcome[Member]:
        """Add a user's endpoints for this node; they come before the known ones.

        Raises UnknownError, UsageError ``too_many_addresses``.
        """
        member = self.member(node_id)
        advertised = require_few((*endpoints, *member.advertised), "--advertise")
        registry, rows = self._publish(replace(member, advertised=advertised))
        return registry, rows, registry.members[node_id]

    def endpoints_observed(self, hub_id: str, observed: Mapping[str, Endpoint | None]) -> Outcome[None]:
        """Record the nodes' endpoints in a hub's WireGuard; None: no longer over UDP.

        Ignored from any node but a hub; if several hubs observe a node, the first one's report counts. Raises
        UnknownError.
        """
        hubs = [hub.id for hub in self.with_role(HUB)]
        self.member(hub_id)
        registry = self
        for node_id, endpoint in observed.items():
            member = registry.members.get(node_id)
            if member is None or hub_id not in hubs or (member.node.seen is not None and hub_id != hubs[0]):
                continue
            registry, _ = registry._put(replace(member, node=replace(member.node, seen=endpoint)), stored=False)
        return registry, (), None

    def silence_reported(self, reporter_id: str, silence: Mapping[str, str]) -> Outcome[None]:
        """Record the coordinator's node's results for the others over the overlay: SILENT, GONE, or empty: it answers.

        Ignored from any other node. Raises UnknownError.
        """
        if COORDINATOR not in self.member(reporter_id).node.roles:
            return self, (), None
        registry = self
        for node_id, found in silence.items():
            member = registry.members.get(node_id)
            if member is not None and found in ("", SILENT, GONE):
                registry, _ = registry._put(replace(member, node=replace(member.node, silence=found)), stored=False)
        return registry, (), None

    def ray_started(self, node_id: str, instance: str) -> Outcome[None]:
        """Record another instance of Ray's head, empty while it is down. Ignored from any node but the head."""
        member = self.member(node_id)
        if HEAD not in member.node.roles:
            return self, (), None
        node = replace(member.node, ray_instance=instance)
        return *self._put(replace(member, node=node), stored=False), None

    # ---- tokens

    def add_token(self, token: TokenRecord) -> Outcome[TokenRecord]:
        """Add a new token, whose id was never used before."""
        return replace(self, tokens={**self.tokens, token.id: token}), (PutToken(token),), token

    def revoke_token(self, token_id: str) -> Outcome[TokenRecord]:
        """Revoke a token; nodes that joined with it stay. Raises UnknownError."""
        token = self.tokens.get(token_id)
        if token is None:
            raise UnknownError("token_unknown", f"there is no token {token_id[:64]!r}", hint="meshray token list")
        return self.add_token(replace(token, revoked=True))

    # ---- implementation

    def _await_first_map(self, node: Node, now: float) -> Registry:
        if not node.ephemeral or node.online:
            return replace(self, deadlines=_without(self.deadlines, node.id))
        return replace(self, deadlines={**self.deadlines, node.id: now + NEVER_ONLINE_GRACE_S})

    def _address(self, now: float) -> IPv4Address:
        return allocate(self.mesh.network, self.index.addresses, self.freed, now, self.index.lowest)

    def _reserved(self, wall: float) -> set[NodeName]:
        """Return the names of the tokens with which a machine may still join."""
        valid = (token for token in self.tokens.values() if not token.is_spent and token.refusal(wall) is None)
        return {token.name for token in valid if token.name is not None}

    def with_key(self, key: PublicKey) -> Member | None:
        """Return the member that has this key; None if there is none."""
        return self.members.get(self.index.keys.get(key, ""))

    def _publish(self, member: Member) -> tuple[Registry, RowChanges]:
        """Return the member with the endpoints that follow from what is known about it.

        A hub's are stored: nodes that return while it is away need them.
        """
        old = self.members[member.node.id]
        new = member.published(most_reached(self.members.values()) if COORDINATOR in member.node.roles else ())
        moved = HUB in new.node.roles and new.node.endpoints != old.node.endpoints
        return self._put(
            new, stored=moved or new.node.versions != old.node.versions or new.advertised != old.advertised
        )

    def _publish_coordinator(self) -> tuple[Registry, RowChanges]:
        own = next(iter(self.with_role(COORDINATOR)), None)
        return self._publish(self.members[own.id]) if own is not None else (self, ())

    def _put(self, member: Member, *, stored: bool = True) -> tuple[Registry, RowChanges]:
        old = self.members.get(member.node.id)
        if old == member:
            return self, ()
        registry = replace(self, **self._replaced(member.node.id, member))
        rows: RowChanges = (PutMember(member),) if stored else ()
        if old is not None and old.node == member.node:
            return registry, rows
        return registry.next_revision(rows)

    def _replaced(self, node_id: str, new: Member | None) -> dict[str, Any]:
        """Return the fields that change with this member."""
        old, members = self.members.get(node_id), dict(self.members)
        if new is not None:
            members[node_id] = new
        else:
            members.pop(node_id, None)
        return {"members": members, "indexed": (members, self.index.with_member(node_id, old, new))}

    def next_revision(self, rows: RowChanges) -> tuple[Registry, RowChanges]:
        """Return the registry at the next revision of the map, with its rows."""
        revision = self.revision + 1
        if revision <= self.reserved:
            return replace(self, revision=revision), rows
        reserved = revision + REVISION_BLOCK
        return replace(self, revision=revision, reserved=reserved), (*rows, PutRevision(reserved))


def _without(values: Mapping[str, float], key: str) -> dict[str, float]:
    return {name: value for name, value in values.items() if name != key}
