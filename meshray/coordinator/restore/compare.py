"""After a restore from an older copy: which reports of nodes are trusted, and their consequences (pure).

    a mark that is not in the past          the database is an older copy: report it, number above it
    the map of the coordinator's machine    nodes are added and removed as they had been
    the map of any other node               its addresses are held back: it is not trusted for more
    an older copy, in any report            the page's passes are revoked: used and revoked ones would work again
    a ticket                                the node itself is a member again, with its credential

A ticket is useless to a removed node: the moment of its creation is in the past of a database that was not restored,
and that database has no such member.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from msgspec import structs

from meshray.coordinator.admission import free_name
from meshray.coordinator.allocation import allocate
from meshray.coordinator.passes import all_revoked
from meshray.coordinator.records import (
    DropMember,
    Freed,
    Member,
    PutFreed,
    PutMember,
    PutRestored,
    PutRevision,
    PutTimeline,
    RowChange,
    RowChanges,
)
from meshray.coordinator.registry import NEVER_ONLINE_GRACE_S, RESTART_GRACE_S, REVISION_BLOCK, Outcome, Registry
from meshray.coordinator.restore.lineage import Mark
from meshray.coordinator.restore.ticket import Ticket
from meshray.model.node import COORDINATOR, HEAD, STATIC, WORKER, Node, Versions
from meshray.protocol.api import Restored

Verdict = Literal["member", "removed", "unknown"]


@dataclass(frozen=True)
class Evidence:
    """The proofs of a client whose credential belongs to no member.

    Attributes:
        ticket, mark: None if there was none, or none of this coordinator.
        of_another_form: a proof could not be read.
    """

    ticket: Ticket | None = None
    mark: Mark | None = None
    of_another_form: bool = False


def verdict(registry: Registry, evidence: Evidence, credential_hash: str) -> Verdict:
    """Return whether the node is a member again (see `readmitted`), was removed, or this coordinator cannot know.

    "removed" is returned only if this coordinator's past contains the moment at which the node was a member: the agent
    then takes its node down.
    """
    ticket, contains = evidence.ticket, registry.lineage.contains
    if ticket is not None and ticket.credential_hash == credential_hash:
        known = registry.members.get(ticket.node_id)
        if known is not None and not known.credential_hash and STATIC not in known.node.roles:
            # It was restored from the map without its credential, and now it connects.
            return "member"
        if not contains(ticket.mark):
            return "member" if _may_return(registry, ticket) else "removed"
        if _was_restored_since(registry, evidence.mark):
            return "removed"
    is_certain = not evidence.of_another_form and (evidence.mark is None or contains(evidence.mark))
    return "removed" if is_certain else "unknown"


def _was_restored_since(registry: Registry, received: Mark | None) -> bool:
    """Return whether the past was restored by the coordinator's machine, with a map at least as new as the mark.

    Then the past contains no more of that timeline than the copy did, and the map shows which nodes were removed since.
    """
    restored = registry.lineage.restored
    return received is not None and restored is not None and restored.whole and received.serial <= restored.serial


def _may_return(registry: Registry, ticket: Ticket) -> bool:
    known = registry.members.get(ticket.node_id)
    if known is not None:
        # Its credential was renewed after the copy was made.
        return not known.node.roles & {COORDINATOR, STATIC}
    # If another member has its key, the same machine has enrolled again.
    return all(member.node.public_key != ticket.public_key for member in registry.members.values())


def record_mark(registry: Registry, mark: Mark, now: float) -> Outcome[bool]:
    """Record a node's mark. If the past does not contain it, the database is an older copy.

    Returns:
        Whether that was not known before.
    """
    lineage = registry.lineage
    if lineage.is_known(mark):
        return registry, (), False
    before = lineage.restored
    pass_rows: RowChanges = ()
    restored = Restored(now, mark.serial, whole=False, had=lineage.mark(0).serial, added=(), removed=())
    if before is not None and now - before.at < RESTART_GRACE_S:
        # One restore, about which one node after another reports a little more.
        restored = structs.replace(before, serial=mark.serial, whole=False)
    else:
        registry, pass_rows, _ = all_revoked(registry, now)
    registry, rows = _published(registry, mark.revision)
    return _noted(registry, restored), (*pass_rows, *rows, PutRestored(restored)), True


def recall(registry: Registry, nodes: Iterable[Node], mark: Mark, now: float, *, began: float) -> Outcome[Restored]:
    """Restore the map of a lost moment, which the coordinator's own machine still has.

    The restored members have no credential; each gets it back with its ticket.

    Args:
        mark: the map's moment.
        began: when this run of the coordinator began; nodes that enrolled since are in no lost map.
    """
    received = {node.id: node for node in nodes}
    removed = [
        member
        for member in registry.members.values()
        if member.node.id not in received and member.enrolled < began and COORDINATOR not in member.node.roles
    ]
    lost = {member.node.id for member in removed}
    members = {key: member for key, member in registry.members.items() if key not in lost}
    freed_now = {member.node.ip: Freed(now, str(member.node.name)) for member in removed}
    freed = {**registry.freed, **freed_now}
    deadlines = {key: at for key, at in registry.deadlines.items() if key not in lost}
    rows: list[RowChange] = [DropMember(key) for key in lost]
    rows += [PutFreed(address, entry) for address, entry in freed_now.items()]
    added: list[str] = []
    # Names and addresses may have moved from one node to another: all are removed before any is set.
    changed = [node for node in received.values() if _differs(node, members.get(node.id))]
    for node in changed:
        if members.pop(node.id, None) is not None:
            rows.append(DropMember(node.id))
    for node in sorted(changed, key=lambda node: node.ip):
        known = registry.members.get(node.id)
        if _clashes(node, members.values()):
            continue
        member = _from_map(node, known, now)
        members[node.id] = member
        rows.append(PutMember(member))
        if known is None:
            added.append(str(node.name))
            if node.ephemeral:
                deadlines[node.id] = now + RESTART_GRACE_S
    before = registry.lineage.restored
    restored = Restored(
        now,
        max(mark.serial, before.serial if before else 0),
        whole=True,
        had=registry.lineage.mark(0).serial,
        added=tuple(added),
        removed=tuple(str(member.node.name) for member in removed),
    )
    registry = replace(registry, members=members, freed=freed, deadlines=deadlines)
    # Its timeline is part of the past now: members of it that are not in the map had been removed.
    lineage = replace(registry.lineage, timelines={**registry.lineage.timelines, mark.timeline: mark.serial})
    registry, more = _published(replace(registry, lineage=lineage), mark.revision)
    registry, passes, _ = all_revoked(registry, now)
    return (
        _noted(registry, restored),
        (*rows, *more, *passes, PutTimeline(mark.timeline, mark.serial), PutRestored(restored)),
        restored,
    )


def hold_addresses(registry: Registry, nodes: Iterable[Node], now: float) -> Outcome[int]:
    """Hold back the addresses that another node's map contains and the copy does not, until their nodes return.

    Returns:
        The number of addresses.
    """
    taken = {member.node.ip for member in registry.members.values()}
    network = registry.mesh.network
    held = {
        node.ip: Freed(now)
        for node in nodes
        if node.ip in network.cidr and node.ip not in taken and node.ip not in registry.freed
    }
    rows = tuple(PutFreed(ip, entry) for ip, entry in held.items())
    return replace(registry, freed={**registry.freed, **held}), rows, len(held)


def readmitted(registry: Registry, ticket: Ticket, now: float) -> Outcome[Member]:
    """Restore the node of this ticket as a member, if `verdict` allows it.

    It gets its address again, unless another node has that now; then it gets a new one.

    Raises:
        MeshrayError: network_full.
    """
    registry, rows, _ = record_mark(registry, ticket.mark, now)
    known = registry.members.get(ticket.node_id)
    if known is not None:
        member = replace(known, credential_hash=ticket.credential_hash)
        registry = replace(registry, members={**registry.members, member.node.id: member})
        return registry, (*rows, PutMember(member)), member
    others = [member.node for member in registry.members.values()]
    taken = {node.ip for node in others}
    roles = ticket.roles - {COORDINATOR, STATIC}
    if HEAD in roles and registry.map.head is not None:
        roles = roles - {HEAD} | {WORKER}
    node = Node(
        id=ticket.node_id,
        name=free_name(ticket.name, {node.name for node in others}, exact=False),
        ip=ticket.ip if ticket.ip not in taken else allocate(registry.mesh.network, taken, registry.freed, now),
        public_key=ticket.public_key,
        roles=roles,
        ephemeral=ticket.ephemeral,
        labels=ticket.labels,
    )
    member = Member(node, ticket.credential_hash, "", (), now, had_map=True)
    restored = registry.lineage.restored
    if restored is not None:
        restored = structs.replace(restored, added=(*restored.added, str(node.name)))
        registry, rows = _noted(registry, restored), (*rows, PutRestored(restored))
    deadlines = dict(registry.deadlines)
    if node.ephemeral:
        deadlines[node.id] = now + NEVER_ONLINE_GRACE_S
    registry = replace(registry, members={**registry.members, node.id: member}, deadlines=deadlines)
    registry, more = _published(registry, ticket.mark.revision)
    return registry, (*rows, PutMember(member), *more), member


def _noted(registry: Registry, restored: Restored) -> Registry:
    return replace(registry, lineage=replace(registry.lineage, restored=restored))


def _published(registry: Registry, received: int) -> tuple[Registry, tuple[RowChange, ...]]:
    """Return the next revision, above every one that nodes have received."""
    revision = max(registry.revision, received) + 1
    reserved = max(registry.reserved, revision + REVISION_BLOCK)
    return replace(registry, revision=revision, reserved=reserved), (PutRevision(reserved),)


def _differs(node: Node, known: Member | None) -> bool:
    return known is None or _persistent(node) != _persistent(known.node)


def _persistent(node: Node) -> Node:
    """Return the member without transient values, and those that agents report whenever they connect."""
    return replace(node, endpoints=(), seen=None, hubs=(), online=False, versions=Versions(), ray_instance="")


def _clashes(node: Node, members: Iterable[Member]) -> bool:
    """Return whether a node that enrolled since the restore has its name, address or key."""
    return any(
        other.node.ip == node.ip or other.node.name == node.name or other.node.public_key == node.public_key
        for other in members
    )


def _from_map(node: Node, known: Member | None, now: float) -> Member:
    persistent = replace(node, seen=None, hubs=(), online=known.node.online if known else False, ray_instance="")
    if known is None:
        return Member(persistent, "", "", node.endpoints if STATIC in node.roles else (), now, had_map=True)
    return replace(known, node=replace(persistent, endpoints=known.node.endpoints))
