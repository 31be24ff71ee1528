"""Who is in the mesh, with which address, by which token: every rule, and no I/O.

A `Registry` never changes. Each method takes the time, and returns the next registry, the rows
that the store must write before anybody is answered, and the answer; or it raises and nothing changed.

>>> registry, rows, member = registry.enrol(request, node_id="n2", credential_hash="…", compare=compare, now=0.0)
>>> rows
(PutMember(…), PutRevision(…), PutToken(…))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address
from typing import TypeAlias, TypeVar

from meshray.coordinator.admission import (
    ConflictError,
    UnknownError,
    endpoints_of,
    enrolled_again,
    free_name,
    labels_of,
    name_of,
    require_same,
    roles_of,
    token_of,
)
from meshray.coordinator.allocation import allocate, cools_down, left_by, previous_address
from meshray.coordinator.locking import require_attested
from meshray.coordinator.records import (
    DropFreed,
    DropMember,
    Freed,
    Member,
    PutFreed,
    PutMember,
    PutRevision,
    PutToken,
    RowChange,
    RowChanges,
    SecretEpoch,
    TokenRecord,
)
from meshray.coordinator.restore.lineage import Lineage
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Removals
from meshray.model.endpoints import MAX_ENDPOINTS, is_public, require_few
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshInfo, MeshMap
from meshray.model.node import COORDINATOR, GONE, HEAD, HUB, SILENT, STATIC, WORKER, Node, Versions

#: An ephemeral node is removed so long after its agent's connection went away, seconds: within a minute, with what it
#: takes to look. Longer than a network is away for a moment.
EPHEMERAL_GRACE_S = 50.0
#: After a restart of the coordinator they all have to find it again first.
RESTART_GRACE_S = 120.0
#: An ephemeral node that never came for its map may still be starting; after this it is a ghost.
NEVER_SEEN_GRACE_S = 3600.0
#: A join that fails takes itself back within this time, seconds: Ray may start for minutes before it does.
TAKE_BACK_S = 900.0
#: Of the endpoints at which members reached the coordinator, so many are shown to others.
MOST_REACHED = 4
#: So many revisions are reserved with one write: presence changes the map often and is not stored.
REVISION_BLOCK = 1000

T = TypeVar("T")
Outcome: TypeAlias = "tuple[Registry, RowChanges, T]"
#: Raises where the first versions do not go together with the head's, the second.
CompareVersions = Callable[[Versions, Versions], None]


@dataclass(frozen=True)
class Registry:
    """The state of one mesh.

    Attributes:
        members: by node id.
        tokens: by token id.
        freed: when an address that was in use became free, and who had it. An entry lasts for an hour, also where the
            address went back to its name meanwhile: should that node never come online, the rest goes on.
        deadlines: when an absent ephemeral node will be removed, unix seconds, by node id.
        revision: of the map; one more with each change that other nodes can see.
        reserved: no revision up to this one is given out again after a restart.
        requirements: what `meshray env lock` recorded.
        lineage: what was written before, by which a restored copy is recognised.
        epochs: the mesh's secrets, oldest first; see `meshray.coordinator.epochs`.
        removals: what the lock has removed; None: nothing, or there is no lock.
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

    # What is so

    @cached_property
    def map(self) -> MeshMap:
        """What every node may know."""
        nodes = {key: member.node for key, member in self.members.items()}
        return MeshMap(self.mesh, self.revision, nodes, removals=self.removals)

    @cached_property
    def by_credential(self) -> Mapping[str, Member]:
        """The nodes by the hash of their credential."""
        return {member.credential_hash: member for member in self.members.values() if member.credential_hash}

    def named(self, name: str) -> Member:
        """Raises UnknownError, code ``node_unknown``."""
        for member in self.members.values():
            if member.node.name == name.lower():
                return member
        raise UnknownError("node_unknown", f"there is no node {name[:63]!r} in this mesh", hint="meshray node list")

    # Nodes come and go

    def found(
        self, node: Node, credential_hash: str, now: float, advertised: tuple[Endpoint, ...] = ()
    ) -> Outcome[Member]:
        """The first node of a new mesh: head, hub and coordinator; its address is allocated here."""
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
        """A machine becomes a node, or, known by its key, becomes the same node again.

        Args:
            node_id: for a new node; random, never used before.
            wall: unix seconds by which tokens expire, where that is another clock than ``now``.
            address: of the node whose place a new one takes; nobody has it any more.
            credential_hash: of what the node will show from now on.

        Raises:
            RefusedError: token_other_mesh, token_unknown, token_revoked, token_expired, token_used_up,
                token_other_name, name_taken, key_taken, head_exists, role_not_granted; or as `require_attested` does.
            UsageError: hub_needs_endpoint.
            MeshrayError: network_full, or what ``compare`` raises.
        """
        wall = now if wall is None else wall
        token = token_of(request, self.mesh, self.tokens, wall)
        known = self.with_key(request.public_key)
        head = self.map.head
        roles = roles_of(request, token, known, head)
        if WORKER in roles and head is not None and head.versions.ray:
            compare(request.versions, head.versions)
        attestation = require_attested(request, self.mesh, known, self.removals)
        if known is not None:
            require_same(known, token)
        elif token.is_spent:
            raise token.spent()
        name = name_of(request, token, known, self._names, self._reserved(wall))
        if known is not None:
            member = enrolled_again(known, request, token, name=name, roles=roles, attestation=attestation)
            registry, rows = self._put(replace(member, credential_hash=credential_hash))
            return registry._await_first_map(member.node, now), rows, registry.members[member.node.id]
        node = Node(
            id=node_id,
            name=name,
            ip=address or previous_address(self.freed, self._addresses, name, token) or self._address(now),
            public_key=request.public_key,
            roles=roles,
            endpoints=endpoints_of(request),
            ephemeral=request.ephemeral or token.ephemeral,
            labels=labels_of(request),
            versions=request.versions,
            attestation=attestation,
        )
        used = replace(token, used=token.used + 1)
        registry, rows = self._put(Member(node, credential_hash, token.id, node.endpoints, now))
        registry = replace(registry, tokens={**self.tokens, token.id: used})
        return registry._await_first_map(node, now), (*rows, PutToken(used)), registry.members[node_id]

    def add_static(self, name: NodeName, public_key: PublicKey, node_id: str, now: float) -> Outcome[Member]:
        """A device without an agent. Raises RefusedError name_taken, MeshrayError network_full."""
        node = Node(node_id, self._free_name(name, exact=True), self._address(now), public_key, frozenset({STATIC}))
        return self.put(Member(node, "", "", (), now))

    def remove(self, node_id: str, now: float, *, take_back: bool = False) -> Outcome[Member]:
        """The node is no member any more. Its address rests for an hour, unless the node never came online.

        Args:
            take_back: its join failed on its side: if that was just now, the token's use is given back, and the next
                join of that name gets the address.

        Raises:
            UnknownError: there is none.
            ConflictError: the node that runs the coordinator cannot be removed.
        """
        member = self.member(node_id)
        if COORDINATOR in member.node.roles:
            raise ConflictError(
                "node_is_coordinator",
                f"{member.node.name} runs the coordinator of this mesh and cannot be removed",
                hint=f"to end the whole mesh, on {member.node.name}: meshray leave",
            )
        failed = take_back and now - member.enrolled <= TAKE_BACK_S
        registry = replace(
            self,
            members={key: other for key, other in self.members.items() if key != node_id},
            deadlines=_without(self.deadlines, node_id),
        )
        rows: RowChanges = (DropMember(node_id),)
        address, left = member.node.ip, left_by(member, now, failed=failed)
        if left is not None:
            registry, rows = replace(registry, freed={**self.freed, address: left}), (*rows, PutFreed(address, left))
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
        """Another name, the same node. Raises UnknownError, RefusedError name_taken."""
        member = self.named(name)
        if member.node.name == new:
            return self, (), member
        return self.put(replace(member, node=replace(member.node, name=self._free_name(new, exact=True))))

    def drain(self, name: str, drained: bool) -> Outcome[Member]:
        """Ray shall stay away from the node, or may come back. Raises UnknownError, ConflictError."""
        member = self.named(name)
        if WORKER not in member.node.roles:
            raise ConflictError(
                "not_a_worker", f"{member.node.name} runs no Ray worker that could be drained", hint="meshray node list"
            )
        return self.put(replace(member, node=replace(member.node, drained=drained)))

    def put(self, member: Member) -> Outcome[Member]:
        """The member as it was changed; who may change what is decided before."""
        registry, rows = self._put(member)
        return registry, rows, member

    def collect(self, now: float) -> Outcome[tuple[Member, ...]]:
        """Removes the ephemeral nodes that stayed away, and forgets addresses that have rested."""
        rested = [address for address, left in self.freed.items() if not cools_down(left.at, now)]
        registry = replace(self, freed={key: left for key, left in self.freed.items() if key not in rested})
        rows: list[RowChange] = [DropFreed(address) for address in rested]
        gone: list[Member] = []
        for node_id, deadline in self.deadlines.items():
            if now >= deadline:
                registry, dropped, member = registry.remove(node_id, now)
                rows.extend(dropped)
                gone.append(member)
        return registry, tuple(rows), tuple(gone)

    # What agents report

    def member(self, node_id: str) -> Member:
        """Raises UnknownError, code ``node_unknown``."""
        member = self.members.get(node_id)
        if member is None:
            raise UnknownError("node_unknown", "this node is not in the mesh any more", hint="meshray leave")
        return member

    def restarted(self, now: float) -> Registry:
        """After the coordinator started: nobody is connected yet, ephemeral nodes get time to come back."""
        return replace(
            self,
            deadlines={
                key: now + (RESTART_GRACE_S if member.had_map else NEVER_SEEN_GRACE_S)
                for key, member in self.members.items()
                if member.node.ephemeral
            },
        )

    def connected(self, node_id: str) -> Outcome[Member]:
        """The node's agent is here. Raises UnknownError."""
        member = self.member(node_id)
        here = replace(member, node=replace(member.node, online=True, down=False, ended=False))
        registry, rows = self._put(here, stored=member.node.down)
        registry = replace(registry, deadlines=_without(self.deadlines, node_id))
        return registry, rows, member

    def taken_down(self, node_id: str) -> Outcome[Member]:
        """A user takes the node down: it will be away and nothing is wrong with it. Raises UnknownError."""
        member = self.member(node_id)
        return self.put(replace(member, node=replace(member.node, down=True)))

    def disconnected(self, node_id: str, now: float, *, ended: bool = False) -> Outcome[None]:
        """The node's agent went away; nothing happens where the node did too.

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
            grace = EPHEMERAL_GRACE_S if member.had_map else NEVER_SEEN_GRACE_S
            registry = replace(registry, deadlines={**self.deadlines, node_id: now + grace})
        return registry, rows, None

    def got_map(self, node_id: str) -> Outcome[None]:
        """The agent received a whole map: the node came online, and an ephemeral one may be collected from now on."""
        member = self.members.get(node_id)
        if member is None or member.had_map:
            return self, (), None
        registry, rows = self._put(replace(member, had_map=True))
        return registry, rows, None

    def reported(
        self,
        node_id: str,
        versions: Versions,
        endpoints: tuple[Endpoint, ...],
        hubs: tuple[str, ...] = (),
        reached: Endpoint | None = None,
    ) -> Outcome[None]:
        """What an agent says of itself when it connects and when it changes. Raises UnknownError.

        Args:
            hubs: ids of the hubs that it can use; what is no hub's id is passed over.
            reached: at which endpoint it reached the coordinator. Other nodes may need it as well: it is shown as the
                coordinator's, as long as this node is connected there.
        """
        member = self.member(node_id)
        there = {hub.id for hub in self.map.hubs}
        usable = tuple(dict.fromkeys(hub for hub in hubs if hub in there))
        node, is_useful = replace(member.node, versions=versions, hubs=usable), COORDINATOR not in member.node.roles
        said = replace(
            member,
            node=node,
            reported=endpoints[:MAX_ENDPOINTS],
            reached=reached if is_useful and reached and is_public(reached, self.mesh.network) else None,
        )
        registry, rows = self._publish(said)
        if said.reached == member.reached:
            return registry, rows, None
        registry, more = registry._publish_coordinator()
        return registry, (*rows, *more), None

    def advertise(self, node_id: str, endpoints: tuple[Endpoint, ...]) -> Outcome[Member]:
        """A user says where others reach this node; these come before what was known. Raises UnknownError, UsageError
        ``too_many_addresses``."""
        member = self.member(node_id)
        given = require_few((*endpoints, *member.advertised), "--advertise")
        registry, rows = self._publish(replace(member, advertised=given))
        return registry, rows, registry.members[node_id]

    def saw(self, hub_id: str, seen: Mapping[str, Endpoint | None]) -> Outcome[None]:
        """What a hub's WireGuard sees as the nodes' endpoints; None: not over UDP any more.

        Ignored from any node but a hub; where several hubs see a node, the first one's word counts.
        Raises UnknownError.
        """
        hubs = [hub.id for hub in self.map.hubs]
        self.member(hub_id)
        registry = self
        for node_id, endpoint in seen.items():
            member = registry.members.get(node_id)
            if member is None or hub_id not in hubs or (member.node.seen is not None and hub_id != hubs[0]):
                continue
            registry, _ = registry._put(replace(member, node=replace(member.node, seen=endpoint)), stored=False)
        return registry, (), None

    def fell_silent(self, reporter_id: str, silence: Mapping[str, str]) -> Outcome[None]:
        """What the coordinator's own node finds of the others over the overlay: SILENT, GONE, or empty: it answers.

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
        """Ray's head has another instance, empty while it is down. Ignored from any node but the head."""
        member = self.member(node_id)
        if HEAD not in member.node.roles:
            return self, (), None
        node = replace(member.node, ray_instance=instance)
        registry, rows = self._put(replace(member, node=node), stored=False)
        return registry, rows, None

    # Tokens

    def add_token(self, token: TokenRecord) -> Outcome[TokenRecord]:
        """A new token; its id was never used before."""
        return replace(self, tokens={**self.tokens, token.id: token}), (PutToken(token),), token

    def revoke_token(self, token_id: str) -> Outcome[TokenRecord]:
        """Nobody enrols with it any more; nodes that did stay. Raises UnknownError."""
        token = self.tokens.get(token_id)
        if token is None:
            raise UnknownError("token_unknown", f"there is no token {token_id[:64]!r}", hint="meshray token list")
        return self.add_token(replace(token, revoked=True))

    # Inside

    def _await_first_map(self, node: Node, now: float) -> Registry:
        if not node.ephemeral or node.online:
            return replace(self, deadlines=_without(self.deadlines, node.id))
        return replace(self, deadlines={**self.deadlines, node.id: now + NEVER_SEEN_GRACE_S})

    def _address(self, now: float) -> IPv4Address:
        return allocate(self.mesh.network, self._addresses, self.freed, now)

    @property
    def _addresses(self) -> set[IPv4Address]:
        return {member.node.ip for member in self.members.values()}

    @property
    def _names(self) -> set[str]:
        return {member.node.name for member in self.members.values()}

    def _reserved(self, wall: float) -> set[NodeName]:
        """The names of the tokens that a machine may still join with."""
        valid = (token for token in self.tokens.values() if not token.is_spent and token.refusal(wall) is None)
        return {token.name for token in valid if token.name is not None}

    def with_key(self, key: PublicKey) -> Member | None:
        """The member that has this key; None: nobody has it."""
        return next((member for member in self.members.values() if member.node.public_key == key), None)

    def _free_name(self, wanted: NodeName, *, exact: bool) -> NodeName:
        return free_name(wanted, self._names, exact=exact)

    def _publish(self, member: Member) -> tuple[Registry, RowChanges]:
        """The member with the endpoints that follow from what is known of it. A hub's are stored: nodes that come back
        while it is away need them."""
        old = self.members[member.node.id]
        new = member.published(self._reached() if COORDINATOR in member.node.roles else ())
        moved = HUB in new.node.roles and new.node.endpoints != old.node.endpoints
        return self._put(
            new, stored=moved or new.node.versions != old.node.versions or new.advertised != old.advertised
        )

    def _publish_coordinator(self) -> tuple[Registry, RowChanges]:
        own = self.map.coordinator
        return self._publish(self.members[own.id]) if own is not None else (self, ())

    def _reached(self) -> list[Endpoint]:
        """Where members reached the coordinator, what most say first. A member may say what is not so: it costs the
        others a try that fails, since only the right certificate and the right key are accepted."""
        said = Counter(member.reached for member in self.members.values() if member.reached is not None)
        return [endpoint for endpoint, _ in said.most_common(MOST_REACHED)]

    def _put(self, member: Member, *, stored: bool = True) -> tuple[Registry, RowChanges]:
        old = self.members.get(member.node.id)
        if old == member:
            return self, ()
        registry = replace(self, members={**self.members, member.node.id: member})
        rows: RowChanges = (PutMember(member),) if stored else ()
        if old is not None and old.node == member.node:
            return registry, rows
        return registry.next_revision(rows)

    def next_revision(self, rows: RowChanges) -> tuple[Registry, RowChanges]:
        """The registry at the next revision of the map, with the rows that go with it."""
        revision = self.revision + 1
        if revision <= self.reserved:
            return replace(self, revision=revision), rows
        reserved = revision + REVISION_BLOCK
        return replace(self, revision=revision, reserved=reserved), (*rows, PutRevision(reserved))


def _without(values: Mapping[str, float], key: str) -> dict[str, float]:
    return {name: value for name, value in values.items() if name != key}
