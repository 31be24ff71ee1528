"""Access to the page: sessions, their levels, and their end.

A session comes from a cookie, which a browser got for a pass or a link (`meshray.coordinator.passes`), or from the
address of a member that connects over the overlay. The latter reads only: other accounts of that machine have it too.

>>> session = access.session(request)
>>> access.require(request, Level.ADMIN)
Session(key='pass:3f9a01bc', level=<Level.ADMIN: 3>, name='ana', …)
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address

from aiohttp import web

from meshray.coordinator.budgets import pass_account
from meshray.coordinator.connection_limits import ConnectionLimits
from meshray.coordinator.passes import Cookie
from meshray.coordinator.records import PassRecord
from meshray.coordinator.request_limits import RequestLimits
from meshray.coordinator.service import Service
from meshray.errors import RefusedError
from meshray.linux.tasks import Tasks
from meshray.linux.tcp_keepalive import keep_alive
from meshray.model.permission_level import Level
from meshray.protocol.page import csrf_token
from meshray.web.attempts import Attempts

__all__ = ["COOKIE", "CSRF_FIELD", "Access", "Level", "Session"]

#: The prefix binds the cookie to this host, to TLS and to the path /.
COOKIE = "__Host-meshray"
#: The field of a form with the session's CSRF token. Scripts show it in `meshray.protocol.page.CSRF_HEADER`.
CSRF_FIELD = "csrf"
#: The limit for concurrent requests of all sessions, and of all clients without one. Further requests get ``busy``.
MAX_REQUESTS = 256
#: A cookie's value is shorter than this.
_LONGEST_SECRET = 128
#: A refused pass is recorded after this time, seconds.
_NOTED_AFTER_S = 1.0


@dataclass(frozen=True)
class Session:
    """The authenticated client of a request.

    Attributes:
        key: identifies the pass or the node. Limits apply per key, and all sessions with the same key end together.
        name: the name of the pass, or of the member's node.
        csrf: the token that each request which changes something must show; empty without a cookie.
        expires: unix seconds; None: while the node is a member.
        pass_id, node_id: one of the two is empty.
    """

    key: str
    level: Level
    name: str
    csrf: str = field(repr=False)
    expires: float | None = None
    pass_id: str = ""
    node_id: str = ""

    @property
    def has_cookie(self) -> bool:
        """Whether the session belongs to one browser. Otherwise every account of the member's machine has it."""
        return bool(self.csrf)

    @property
    def audit_name(self) -> str:
        """The name in the audit log."""
        return f"pass {self.pass_id} of {self.name}" if self.pass_id else f"page on {self.name}"


@dataclass(frozen=True)
class _Found:
    session: Session | None


@dataclass(eq=False)
class _Running:
    """A request in progress.

    Attributes:
        slot: its slot among the requests in progress, which is released once it is held as a stream.
        is_cut: its session ended meanwhile.
        is_leaving: the request signs out, so the end of its session does not cut it.
    """

    slot: contextlib.ExitStack
    task: asyncio.Task[None] | None = None
    is_cut: bool = False
    is_leaving: bool = False

    def cut(self) -> None:
        if self.is_leaving:
            return
        self.is_cut = True
        if self.task is not None:
            self.task.cancel()


_FOUND = web.RequestKey("meshray_session", _Found)
_RUNNING = web.RequestKey("meshray_running", _Running)


class SessionEnded(Exception):
    """The session of a request ended while the request was in progress."""


class Access:
    """The sessions of the page.

    Args:
        connection_limits: the limits of connections.
    """

    def __init__(self, service: Service, connection_limits: ConnectionLimits) -> None:
        self._service = service
        self._connection_limits = connection_limits
        self._limits = RequestLimits(MAX_REQUESTS)
        self._attempts = Attempts()
        self._running: dict[str, set[_Running]] = {}
        service.passes.on_ended(self.end)

    def session(self, request: web.Request) -> Session | None:
        """Return the session of this request; None if it has none. The answer is the same for the whole request."""
        if _FOUND not in request:
            request[_FOUND] = _Found(self._by_cookie(request) or self._by_address(request))
        return request[_FOUND].session

    def require(self, request: web.Request, level: Level) -> Session:
        """Return the session of this request.

        Raises:
            RefusedError: ``level_too_low``; ``session_missing``, which the site has excluded for its handlers.
        """
        session = self.session(request)
        if session is None:
            raise RefusedError("session_missing", "this page needs a pass")
        if session.level < level:
            flag = "" if level is Level.READ else f" --{level.word}"
            raise RefusedError(
                "level_too_low",
                f"this needs a session of level {level.word}; yours has level {session.level.word}",
                hint=f"on the head: meshray web invite NAME{flag}",
            )
        return session

    def hold(self, request: web.Request) -> None:
        """Keep the connection of this request for a stream or a WebSocket, which may last as long as its session.

        A handler calls this before the long part of its work. The connection then has no time limit, does not count as
        a request in progress, and is one of the streams of its session, whose number is limited. It ends if the
        browser's machine is gone, see `meshray.linux.tcp_keepalive`.
        """
        running, session = request.get(_RUNNING), self.session(request)
        if running is not None and session is not None:
            running.slot.close()
            self._connection_limits.hold_stream(request.protocol, session.key)
            connection = request.transport.get_extra_info("socket") if request.transport is not None else None
            if connection is not None:
                keep_alive(connection)

    def close(self) -> None:
        """End all sessions, because the coordinator stops."""
        for key in list(self._running):
            self.end(key)

    def end(self, key: str) -> None:
        """End all requests, streams and WebSockets of the sessions with this key, at once."""
        for running in list(self._running.get(key, ())):
            running.cut()

    async def run(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Run the handler of a request, unless and until its session ends.

        Raises:
            SessionEnded: it ended meanwhile.
            MeshrayError: ``busy``: too many requests are in progress.
        """
        session, work = self.session(request), Tasks()
        key = session.key if session is not None else ""
        answer: list[web.StreamResponse] = []

        async def serve() -> None:
            answer.append(await handler(request))

        with contextlib.ExitStack() as slot:
            slot.enter_context(self._limits.taking(key))
            self._connection_limits.recognise(request.protocol, key)
            if session is None:
                return await handler(request)
            running = request[_RUNNING] = _Running(slot)
            running.task = work.start(serve(), f"{request.method} for {key}")
            self._running.setdefault(key, set()).add(running)
            expiry = None
            if session.expires is not None:
                left_s = max(0.0, session.expires - self._service.passes.now())
                expiry = asyncio.get_running_loop().call_later(left_s, running.cut)
            try:
                await asyncio.wait([running.task])
                if running.is_cut:
                    raise SessionEnded
                running.task.result()
            finally:
                if expiry is not None:
                    expiry.cancel()
                self._running[key].discard(running)
                if not self._running[key]:
                    del self._running[key]
                await work.close()
        return answer[0]

    async def exchange(self, request: web.Request, secret: str) -> Cookie | None:
        """Return a new session for the secret of a pass or link; None if it is not accepted, whatever the reason.

        Raises:
            MeshrayError: ``busy``: too many wrong secrets came from that address; ``store_failed``.
        """
        address = request.remote or ""
        self._attempts.require(address)
        # Just after startup the database may be an older copy, in which used passes would be valid again.
        await self._service.recovery.settled()
        made = await self._service.passes.exchange(secret) if 0 < len(secret) <= _LONGEST_SECRET else None
        if made is None:
            self._attempts.failed(address)
            self._note_refused(secret, address)
        elif (holder := self._service.passes.holder(made.secret)) is not None:
            by = f"pass {holder.pass_id} of {holder.name}" if holder.pass_id else f"link of {holder.name}"
            self._service.audit.note("pass_used", by=by, source=address, level=holder.level.word)
        return made

    def _note_refused(self, secret: str, address: str) -> None:
        """Record that a known pass was refused, but only once the answer was sent, whose time reveals nothing."""
        record = self._service.passes.with_secret(secret)
        if record is None or not self._service.budgets.may_record_refusal(pass_account(record.id)):
            return
        ended = "revoked" if record.revoked is not None else "expired"
        code = ended if record.ended(self._service.passes.now()) is not None else "used"
        note = partial(self._service.audit.note, by=f"pass {record.id} of {record.name}", source=address, code=code)
        asyncio.get_running_loop().call_later(_NOTED_AFTER_S, note, "pass_refused")

    async def sign_out(self, request: web.Request) -> None:
        """End the session of this request's cookie, with all its other requests."""
        if _RUNNING in request:
            request[_RUNNING].is_leaving = True
        await self._service.passes.end(_cookie(request))

    def ended_pass(self, request: web.Request) -> PassRecord | None:
        """Return the pass to which the ended session of this request's cookie belonged; None if there is none."""
        secret = _cookie(request)
        return self._service.passes.ended(secret) if secret else None

    def _by_cookie(self, request: web.Request) -> Session | None:
        secret = _cookie(request)
        holder = self._service.passes.holder(secret) if secret else None
        if holder is None:
            return None
        return Session(
            holder.key,
            holder.level,
            holder.name,
            csrf_token(secret),
            expires=holder.expires,
            pass_id=holder.pass_id,
            node_id=holder.node_id,
        )

    def _by_address(self, request: web.Request) -> Session | None:
        """Return the session of a member that connects to the coordinator's overlay address.

        WireGuard accepts a packet only with its sender's overlay address. The host that the client names must be that
        address too: otherwise a foreign name that resolves to it (DNS rebinding) would get the session.
        """
        own = self._service.own_node()
        local, peer = _address(request, "sockname"), _address(request, "peername")
        if local != own.ip or peer is None or _host(request) != str(own.ip):
            return None
        node = next((node for node in self._service.map.nodes.values() if node.ip == peer), None)
        return Session(f"node:{node.id}", Level.READ, str(node.name), "", node_id=node.id) if node is not None else None


def set_cookie(response: web.StreamResponse, cookie: Cookie, now: float) -> None:
    """Give a browser its session."""
    left_s = max(1, int(cookie.expires - now))
    response.set_cookie(COOKIE, cookie.secret, max_age=left_s, path="/", secure=True, httponly=True, samesite="Strict")


def forget_cookie(response: web.StreamResponse) -> None:
    """Let a browser delete its cookie."""
    response.set_cookie(COOKIE, "", max_age=0, path="/", secure=True, httponly=True, samesite="Strict")


def same_csrf(session: Session, shown: object) -> bool:
    """Return whether this is the session's CSRF token."""
    expected = session.csrf.encode()
    return bool(expected) and isinstance(shown, str) and hmac.compare_digest(shown.encode(), expected)


def _cookie(request: web.Request) -> str:
    value = request.cookies.get(COOKIE, "")
    return value if len(value) <= _LONGEST_SECRET else ""


def _host(request: web.Request) -> str:
    return request.host.rpartition(":")[0] if ":" in request.host else request.host


def _address(request: web.Request, end: str) -> IPv4Address | None:
    found = request.transport.get_extra_info(end) if request.transport is not None else None
    try:
        return IPv4Address(found[0]) if found else None
    except ValueError:
        return None
