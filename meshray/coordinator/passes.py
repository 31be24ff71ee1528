"""Passes and sessions of the coordinator's page: who may open it, for how long, and what ends a session.

A pass is made by the administrator and stored with the hash of its secret. The first browser that shows the secret gets
a session, whose hash is stored in the pass: the secret is worthless from then on, and the session lasts as long as the
pass. A member's node gets a link instead: a secret for one browser of that machine, kept in memory only.

>>> passes = PassKeeper(ledger, wall)
>>> secret, record = await passes.create("ana", Level.READ, ttl_s=8 * 3600)
>>> cookie = await passes.exchange(secret)
>>> passes.holder(cookie.secret)
Holder(key='pass:3f9a01bc', name='ana', …)
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from meshray.coordinator.admission import ConflictError, UnknownError
from meshray.coordinator.records import DropPass, PassRecord, PutPass, RowChange
from meshray.coordinator.registry import Outcome, Registry
from meshray.coordinator.registry_writer import Ledger
from meshray.model.node import COORDINATOR, Node
from meshray.model.permission_level import Level
from meshray.model.token import hash_secret

#: The number of passes that work at the same time, and of all that are stored.
MAX_PASSES, MAX_STORED = 256, 512
#: A pass that ended is listed for a week, seconds.
KEPT_S = 7 * 86400
#: A link must be opened within this time, seconds; it travels from a terminal to a browser of the same machine.
LINK_S = 120.0
#: The session of a link, seconds.
LINK_SESSION_S = 12 * 3600.0
#: The links that wait and the sessions of one node; another one replaces the oldest.
MAX_LINKS_OF_NODE, MAX_SESSIONS_OF_NODE = 4, 16
#: For this time after a revocation its sessions are looked for, seconds.
SWEPT_S = 60.0
#: 256 random bits.
_SECRET_BYTES = 32

_log = logging.getLogger(__name__)
H = TypeVar("H", bound="PassRecord | _Link")


@dataclass(frozen=True)
class Cookie:
    """A new session.

    Attributes:
        secret: the cookie's value.
        expires: unix seconds.
    """

    secret: str = field(repr=False)
    expires: float


@dataclass(frozen=True)
class Holder:
    """The pass or node to which a session belongs.

    Attributes:
        key: identifies the pass or the node's session; every session with this key ends at the same time.
        name: the name of the pass, or of the node.
        pass_id, node_id: one of the two is empty.
        expires: unix seconds.
    """

    key: str
    name: str
    level: Level
    expires: float
    pass_id: str = ""
    node_id: str = ""


@dataclass(frozen=True)
class _Link:
    """A link of a node, or the session that a browser got for it."""

    id: str
    node_id: str
    secret_hash: str = field(repr=False)
    level: Level
    expires: float


class PassKeeper:
    """The passes of one mesh, and the sessions of its members.

    Args:
        wall: unix seconds.
    """

    def __init__(self, ledger: Ledger, wall: Callable[[], float]) -> None:
        self._ledger = ledger
        self._wall = wall
        self._links: dict[str, _Link] = {}
        self._sessions: dict[str, _Link] = {}
        self._on_ended: list[Callable[[str], object]] = []

    def on_ended(self, ended: Callable[[str], object]) -> None:
        """Register a function that is called with the key of every holder whose sessions have ended."""
        self._on_ended.append(ended)

    def now(self) -> float:
        """Return the time by which passes and sessions expire, unix seconds."""
        return self._wall()

    # ---- passes

    async def create(self, name: str, level: Level, ttl_s: float) -> tuple[str, PassRecord]:
        """Create a pass; return its secret, which is not stored, and its record. Raises as `added` does."""
        secret, now = secrets.token_urlsafe(_SECRET_BYTES), self._wall()
        record = PassRecord(secrets.token_hex(4), name, hash_secret(secret), level, now, now + ttl_s)
        await self._ledger.change(lambda registry: added(registry, record, now))
        _log.info("pass %s was made: %s may %s", record.id, record.name, level.word)
        return secret, record

    async def revoke(self, name_or_id: str) -> PassRecord:
        """Revoke a pass; its session ends before this returns. Raises as `revoked` does."""
        record = await self._ledger.change(lambda registry: revoked(registry, name_or_id, self._wall()))
        _log.info("pass %s of %s was revoked", record.id, record.name)
        self._end(f"pass:{record.id}")
        return record

    def all(self) -> list[PassRecord]:
        """Return the passes that work and those that ended in the last days, the oldest first."""
        now = self._wall()
        return sorted(
            (record for record in self._ledger.registry.passes.values() if _is_listed(record, now)),
            key=lambda record: record.created,
        )

    # ---- links of members

    def create_link(self, node: Node) -> tuple[str, Level, float]:
        """Return the secret of a link for a browser of this node, its level, and until when it works."""
        secret, now = secrets.token_urlsafe(_SECRET_BYTES), self._wall()
        level = Level.ADMIN if COORDINATOR in node.roles else Level.USE
        link = _Link(secrets.token_hex(8), node.id, hash_secret(secret), level, now + LINK_S)
        self._put(self._links, link, MAX_LINKS_OF_NODE)
        return secret, level, link.expires

    def forget_node(self, node_id: str) -> None:
        """End the sessions of a node that was removed."""
        for known in (self._links, self._sessions):
            for link in [link for link in known.values() if link.node_id == node_id]:
                self._drop(known, link)
        self._end(f"node:{node_id}")

    # ---- sessions

    async def exchange(self, secret: str) -> Cookie | None:
        """Return a new session for the secret of a pass or a link.

        Returns:
            None if there is none of this secret, or it expired, was revoked or was exchanged before; the caller must
            not reveal which.

        Raises:
            MeshrayError: ``store_failed``.
        """
        digest, session = hash_secret(secret), secrets.token_urlsafe(_SECRET_BYTES)
        link = _with_hash(self._links, digest, lambda link: link.secret_hash)
        if link is not None:
            return self._begin(link, session)
        record = _with_hash(self._ledger.registry.passes, digest, lambda record: record.secret_hash)
        # An unknown secret takes the same steps, so that the time of the answer does not reveal the reason either.
        pass_id, session_hash = record.id if record is not None else "", hash_secret(session)
        expires = await self._ledger.change(lambda registry: bound(registry, pass_id, session_hash, self._wall()))
        if record is None or expires is None:
            return None
        _log.info("pass %s of %s was used: its session has begun", record.id, record.name)
        return Cookie(session, expires)

    def _begin(self, link: _Link, session: str) -> Cookie | None:
        """Return the session of a link, which is spent; None if it expired or its node was removed."""
        del self._links[link.id]
        now = self._wall()
        if now >= link.expires or link.node_id not in self._ledger.registry.members:
            return None
        begun = replace(link, secret_hash=hash_secret(session), expires=now + LINK_SESSION_S)
        self._put(self._sessions, begun, MAX_SESSIONS_OF_NODE)
        return Cookie(session, begun.expires)

    def holder(self, secret: str) -> Holder | None:
        """Return whose session this cookie is; None if it is none, or has ended."""
        digest, now, registry = hash_secret(secret), self._wall(), self._ledger.registry
        record = _with_hash(registry.passes, digest, lambda record: record.session_hash)
        if record is not None:
            if record.ended(now) is not None:
                return None
            return Holder(f"pass:{record.id}", record.name, record.level, record.expires, pass_id=record.id)
        session = _with_hash(self._sessions, digest, lambda link: link.secret_hash)
        member = registry.members.get(session.node_id) if session is not None else None
        if session is None or member is None or now >= session.expires:
            return None
        node = member.node
        level = session.level if COORDINATOR in node.roles else min(session.level, Level.USE)
        return Holder(f"link:{session.id}", str(node.name), level, session.expires, node_id=node.id)

    def with_secret(self, secret: str) -> PassRecord | None:
        """Return the pass of this secret, even if it is worthless by now; None if there is none."""
        return _with_hash(self._ledger.registry.passes, hash_secret(secret), lambda record: record.secret_hash)

    def ended(self, secret: str) -> PassRecord | None:
        """Return the pass with this cookie, if its session has ended; None if there is none."""
        record = _with_hash(self._ledger.registry.passes, hash_secret(secret), lambda record: record.session_hash)
        return record if record is not None and record.ended(self._wall()) is not None else None

    async def end(self, secret: str) -> None:
        """End the session of this cookie, as its browser asked; a pass ends with it."""
        record = _with_hash(self._ledger.registry.passes, hash_secret(secret), lambda record: record.session_hash)
        if record is not None:
            if record.revoked is None:
                await self.revoke(record.id)
            return
        session = _with_hash(self._sessions, hash_secret(secret), lambda link: link.secret_hash)
        if session is not None:
            self._drop(self._sessions, session)

    def sweep(self) -> None:
        """End the sessions of passes that a restore revoked; to be called every few seconds."""
        now = self._wall()
        for record in self._ledger.registry.passes.values():
            if record.revoked is not None and now - record.revoked < SWEPT_S:
                self._end(f"pass:{record.id}")

    def _put(self, known: dict[str, _Link], link: _Link, most: int) -> None:
        now = self._wall()
        for old in [old for old in known.values() if old.expires <= now]:
            self._drop(known, old)
        of_node = [old for old in known.values() if old.node_id == link.node_id]
        for old in of_node[: max(0, len(of_node) - most + 1)]:
            self._drop(known, old)
        known[link.id] = link

    def _drop(self, known: dict[str, _Link], link: _Link) -> None:
        del known[link.id]
        self._end(f"link:{link.id}")

    def _end(self, key: str) -> None:
        for ended in self._on_ended:
            ended(key)


# ---- steps of the registry (pure)


def added(registry: Registry, record: PassRecord, now: float) -> Outcome[PassRecord]:
    """Add a new pass, and forget those that ended long ago.

    Raises:
        ConflictError: ``pass_name_taken``, ``too_many_passes``.
    """
    working = [other for other in registry.passes.values() if other.ended(now) is None]
    if any(other.name == record.name for other in working):
        raise ConflictError(
            "pass_name_taken",
            f"{record.name} has a pass that still works",
            hint=f"meshray web revoke {record.name}; or choose another name",
        )
    if len(working) >= MAX_PASSES:
        raise ConflictError(
            "too_many_passes", f"{MAX_PASSES} passes work already", hint="meshray web list; meshray web revoke NAME"
        )
    over = sorted(
        (other for other in registry.passes.values() if other not in working), key=lambda other: other.expires
    )
    old = [other.id for other in over if not _is_listed(other, now)]
    old += [other.id for other in over[: max(0, len(registry.passes) - MAX_STORED + 1)] if other.id not in old]
    kept = {key: other for key, other in registry.passes.items() if key not in old}
    rows: list[RowChange] = [DropPass(key) for key in old]
    return replace(registry, passes={**kept, record.id: record}), (*rows, PutPass(record)), record


def revoked(registry: Registry, name_or_id: str, now: float) -> Outcome[PassRecord]:
    """Revoke the pass with this id, or the one with this name that still works.

    Raises:
        UnknownError: ``pass_unknown``.
    """
    named = [record for record in registry.passes.values() if record.name == name_or_id]
    working = [record for record in named if record.ended(now) is None]
    record = registry.passes.get(name_or_id) or next(iter(working or named[-1:]), None)
    if record is None:
        raise UnknownError("pass_unknown", f"there is no pass {name_or_id[:64]!r}", hint="meshray web list")
    if record.revoked is not None:
        return registry, (), record
    return _put(registry, replace(record, revoked=now))


def bound(registry: Registry, pass_id: str, session_hash: str, now: float) -> Outcome[float | None]:
    """Bind a pass to the session of the first browser; return until when it lasts, None if the pass cannot be used."""
    record = registry.passes.get(pass_id)
    if record is None or record.session_hash or record.ended(now) is not None:
        return registry, (), None
    registry, rows, _ = _put(registry, replace(record, session_hash=session_hash, used=now))
    return registry, rows, record.expires


def all_revoked(registry: Registry, now: float) -> Outcome[None]:
    """Revoke all passes: the database is an older copy, in which used ones and revoked ones would work again."""
    revoked_now = [replace(record, revoked=now) for record in registry.passes.values() if record.revoked is None]
    passes = {**registry.passes, **{record.id: record for record in revoked_now}}
    return replace(registry, passes=passes), tuple(PutPass(record) for record in revoked_now), None


def _put(registry: Registry, record: PassRecord) -> Outcome[PassRecord]:
    return replace(registry, passes={**registry.passes, record.id: record}), (PutPass(record),), record


def _is_listed(record: PassRecord, now: float) -> bool:
    ended = record.ended(now)
    return ended is None or now - ended < KEPT_S


def _with_hash(known: Mapping[str, H], digest: str, hash_of: Callable[[H], str]) -> H | None:
    """Return the entry with this hash. Every entry is compared, each in constant time."""
    found = None
    for entry in known.values():
        if hmac.compare_digest(hash_of(entry).encode(), digest.encode()):
            found = entry
    return found
