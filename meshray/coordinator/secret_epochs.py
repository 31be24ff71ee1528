"""Epochs of the secrets that all members share: their beginning, their distribution and their end (pure).

    node rm, secrets rotate ──► a new epoch ──► every connected agent receives it ──► reports it ──► pairs use it
                                                                              all report it ──► the old one ends

A node that is away receives the newest epoch over TLS when it connects. Until then the others use the old one with it,
for at most `KEEP_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

from meshray import __version__
from meshray.coordinator.admission import ConflictError
from meshray.coordinator.records import DropEpoch, Member, PutEpoch, RowChange, SecretEpoch
from meshray.coordinator.registry import Outcome, Registry
from meshray.errors import MeshrayError
from meshray.model.epochs import SharedSecrets
from meshray.model.keys import PresharedKey, PublicKey
from meshray.model.node import HUB, STATIC
from meshray.protocol.api import Rotation
from meshray.protocol.fields import FIRST_EPOCH
from meshray.raynode.tokens import epoch_of

#: An epoch ends this long after the next one began, seconds, whichever nodes are still away.
KEEP_S = 86400.0
#: The maximum number of epochs that are kept only for nodes that are away.
_MOST_KEPT = 32


def newest(registry: Registry) -> SecretEpoch:
    """Return the epoch whose secrets a node receives when it enrols."""
    if not registry.epochs:
        raise MeshrayError("store_corrupt", "the store holds no secrets of this mesh", hint="restore it from a backup")
    return registry.epochs[-1]


def rotated(registry: Registry, fresh: SecretEpoch) -> Outcome[Rotation]:
    """Start a new epoch with the secrets of ``fresh``, whose number is ignored.

    Raises:
        ConflictError: ``agents_too_old``.
    """
    if old := too_old(registry):
        raise ConflictError(
            "agents_too_old",
            f"{', '.join(old[:5])}: the meshray there cannot change its secrets, or has not connected since the "
            "upgrade; no secret was changed",
            hint=f"install meshray {__version__} or later there, then meshray up; or: meshray node rm {old[0]}",
        )
    registry, rows = _started(registry, fresh, newest(registry).number + 1)
    return registry, rows, _rotation(registry, started=True)


#: (registry, now) → the registry without a node.
Removal: TypeAlias = "Callable[[Registry, float], Outcome[Member]]"


def rotated_without(
    registry: Registry, node_id: str, now: float, fresh: SecretEpoch, remove: Removal | None = None
) -> Outcome[tuple[Member, Rotation]]:
    """Remove a node, and start a new epoch that it does not learn.

    A static peer never knew the secret. If a remaining node cannot follow a new epoch, none is started.

    Args:
        remove: removes it in another way, for example as signed by the lock.

    Raises as `Registry.remove` does.
    """
    registry, rows, member = registry.remove(node_id, now) if remove is None else remove(registry, now)
    if STATIC in member.node.roles:
        return registry, rows, (member, Rotation(newest(registry).number, started=False))
    if too_old(registry):
        return registry, rows, (member, _rotation(registry, started=False))
    registry, more = _started(registry, fresh, newest(registry).number + 1)
    return registry, (*rows, *more), (member, _rotation(registry, started=True))


def superseded(registry: Registry, epoch: int, fresh: SecretEpoch) -> Outcome[bool]:
    """Start a new epoch if nodes received one that this database does not know.

    The database is then an older copy, and the secrets of that epoch are lost.

    Returns:
        Whether one was started.
    """
    if epoch <= newest(registry).number:
        return registry, (), False
    registry, rows = _started(registry, fresh, epoch + 1)
    return registry, rows, True


def reduced(registry: Registry, now: float) -> Outcome[bool]:
    """Drop the epochs that no node needs, and retire those that no pair uses; return whether any changed."""
    oldest, others = _oldest(registry, now), _static(registry) | _ray_epochs(registry)
    kept: list[SecretEpoch] = []
    rows: list[RowChange] = []
    for epoch in registry.epochs:
        if epoch.number >= oldest:
            kept.append(epoch)
        elif epoch.number in others:
            kept.append(replace(epoch, retired=True))
            rows += [PutEpoch(kept[-1])] if not epoch.retired else []
        else:
            rows.append(DropEpoch(epoch.number))
    return replace(registry, epochs=tuple(kept)), tuple(rows), bool(rows)


def shared_with(registry: Registry, member: Member, now: float) -> SharedSecrets:
    """Return the secrets that this member should hold now."""
    oldest, ray = _oldest(registry, now), _ray_epochs(registry)
    static = _static(registry) if HUB in member.node.roles else frozenset[int]()
    return SharedSecrets(
        {each.number: each.mesh_secret for each in registry.epochs if each.number >= oldest or each.number in static},
        {each.number: each.ray_token for each in registry.epochs if each.number in ray},
        oldest,
    )


def enrolled(registry: Registry, member: Member, *, follows: bool) -> Outcome[Member]:
    """Record that the member has received the newest epoch.

    Args:
        follows: its agent follows further epochs.

    Raises:
        MeshrayError: ``meshray_too_old``: its agent does not, and this mesh has changed its secrets.
    """
    epoch = newest(registry).number
    if epoch > FIRST_EPOCH and not follows and STATIC not in member.node.roles:
        raise MeshrayError(
            "meshray_too_old",
            "this mesh changes its secrets, and this machine's meshray is too old to follow",
            hint=f"install meshray {__version__} or later on this machine",
        )
    return registry.put(replace(member, node=replace(member.node, secret_epoch=epoch), follows_epochs=follows))


def reported(registry: Registry, node_id: str, epoch: int | None) -> Outcome[bool]:
    """Record the epoch that an agent holds.

    Args:
        epoch: its newest epoch; None: its meshray is too old for epochs.

    Returns:
        Whether the agent lacks the newest epoch, or holds one that this database does not know.
    """
    member = registry.member(node_id)
    node = replace(member.node, secret_epoch=epoch or member.node.secret_epoch)
    after = replace(member, node=node, follows_epochs=epoch is not None)
    differs = epoch is not None and epoch != newest(registry).number
    if after == member:
        return registry, (), differs
    registry, rows, _ = registry.put(after)
    return registry, rows, differs


def static_key(registry: Registry, peer: PublicKey, hub: PublicKey) -> PresharedKey:
    """Return the preshared key for the file of a static peer that was just added."""
    return newest(registry).mesh_secret.preshared_key(peer, hub)


def ray_token(registry: Registry) -> str:
    """Return the token of the head's running Ray; while that is down, the token of its next start."""
    head, last = registry.map.head, newest(registry)
    running = epoch_of(head.ray_instance) if head is not None and head.ray_instance else last.number
    return next((epoch.ray_token for epoch in registry.epochs if epoch.number == running), last.ray_token)


def too_old(registry: Registry) -> tuple[str, ...]:
    """Return the names of the nodes that cannot follow a new epoch, as far as is known."""
    return _names(member for member in _with_agents(registry) if not member.follows_epochs)


def _started(registry: Registry, fresh: SecretEpoch, number: int) -> tuple[Registry, tuple[RowChange, ...]]:
    epoch = replace(fresh, number=number)
    return replace(registry, epochs=(*registry.epochs, epoch)), (PutEpoch(epoch),)


def _rotation(registry: Registry, *, started: bool) -> Rotation:
    return Rotation(
        newest(registry).number,
        started,
        away=_names(member for member in _with_agents(registry) if not member.node.online),
        static=_names(member for member in registry.members.values() if STATIC in member.node.roles),
        too_old=too_old(registry),
    )


def _oldest(registry: Registry, now: float) -> int:
    """Return the oldest epoch that a pair of nodes with agents may use."""
    last = newest(registry).number
    if all(member.node.online and member.node.secret_epoch >= last for member in _with_agents(registry)):
        # Each of them gets the map that determines this.
        return last
    kept = [epoch for epoch in registry.epochs if not epoch.retired][-_MOST_KEPT:]
    return next((each.number for each, following in pairwise(kept) if now < following.began + KEEP_S), last)


def _static(registry: Registry) -> frozenset[int]:
    nodes = [member.node for member in registry.members.values()]
    return frozenset(node.secret_epoch for node in nodes if STATIC in node.roles)


def _ray_epochs(registry: Registry) -> frozenset[int]:
    """Return the epochs of Ray's tokens that are in use, or will be with the next start of the head's Ray."""
    last, head = newest(registry).number, registry.map.head
    if head is None or not head.versions.ray:
        return frozenset({last})
    numbers = [each.number for each in registry.epochs]
    if not head.ray_instance:
        # Its Ray is down, or its agent has not reported it yet.
        return frozenset(numbers[-_MOST_KEPT:])
    running = epoch_of(head.ray_instance)
    # A head that does not hold the newest epoch may be starting Ray with the previous one.
    following = numbers[-_MOST_KEPT:] if head.secret_epoch < last else [last]
    return frozenset({running, *(number for number in following if number > running)})


def _with_agents(registry: Registry) -> list[Member]:
    return [member for member in registry.members.values() if STATIC not in member.node.roles]


def _names(members: Iterator[Member]) -> tuple[str, ...]:
    return tuple(sorted(str(member.node.name) for member in members))
