"""The frame of the page: its routes with their levels, its errors as HTML, and its headers.

Every request outside of the API passes `Site`, which answers 401 without a session and 403 without the route's level,
before a handler runs. So a handler sees only requests that may be answered:

    request ──► session? ──► same origin? ──► level? ──► CSRF token? ──► handler, until its session ends
                  401            403            403          403

>>> site = Site(app, service, connection_limits)
>>> site.add("GET", "/matrix", matrix)
>>> site.add("POST", "/tokens", create_token, read=Level.ADMIN)
>>> site.add("*", "/serve/{node}/{port}/{path:.*}", proxy, write=Level.USE, is_program=True)
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import jinja2
from aiohttp import web
from aiohttp.typedefs import Middleware

from meshray.coordinator.api_answers import status_of
from meshray.coordinator.api_requests import BODY_S
from meshray.coordinator.connection_limits import ConnectionLimits
from meshray.coordinator.handlers import API_PATH
from meshray.coordinator.service import Service
from meshray.errors import MeshrayError, RefusedError
from meshray.protocol.page import CSRF_HEADER
from meshray.web.access import (
    COOKIE,
    CSRF_FIELD,
    Access,
    Level,
    Session,
    SessionEnded,
    forget_cookie,
    same_csrf,
)
from meshray.web.static_files import StaticFiles

_FOLDER = Path(__file__).parent
_READS = frozenset({"GET", "HEAD"})
#: A host that can be part of a content security policy, which knows no addresses in brackets.
POLICY_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?")
#: Headers of every answer. A handler that sets one of them itself is not overruled: the proxy has stricter ones.
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With no-referrer browsers send "Origin: null" with forms, and the origin could not be checked.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

#: Headers of answers that are not pages. A window that shows one has the page's origin. Without these headers a script
#: of a program of the cluster could open such a window and act in it with the viewer's session.
NO_SCRIPTS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Closes(Protocol):
    """A part of the page with tasks of its own."""

    async def close(self) -> None:
        """End the tasks."""


Part = TypeVar("Part", bound=Closes)


class _Begun:
    """Marks a request whose answer has begun."""


_BEGUN = web.RequestKey("meshray_begun", _Begun)


@dataclass(frozen=True)
class Rule:
    """The sessions that a route accepts.

    Attributes:
        read: the level for GET and HEAD.
        write: the level for every other method, and for WebSockets.
        needs_cookie: a member's address does not suffice, because other accounts of that machine must not get the
            permissions of this route.
        is_program: the route leads to a program of the cluster, which does not know the page's CSRF token. Requests of
            other origins are refused all the same.
        is_public: the route needs no session.
        on_unauthorized: is called before a request without a session is answered.
    """

    read: Level = Level.READ
    write: Level = Level.ADMIN
    needs_cookie: bool = False
    is_program: bool = False
    is_public: bool = False
    on_unauthorized: Callable[[web.Request], None] | None = None


#: The rule for a path that does not exist.
_UNKNOWN = Rule(write=Level.READ)


class Site:
    """The routes of the page, and the common part of their answers."""

    def __init__(self, app: web.Application, service: Service, connection_limits: ConnectionLimits) -> None:
        self.service = service
        self.access = Access(service, connection_limits)
        self.files = StaticFiles(_FOLDER / "static")
        self._connection_limits = connection_limits
        self._app = app
        self._rules: dict[object, Rule] = {}
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.globals["static"] = self.files.url
        app.middlewares.append(self._middleware())
        app.on_response_prepare.append(self._complete_headers)
        self.add("GET", "/static/{version}/{name}", self.files.serve, is_public=True)

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        read: Level = Level.READ,
        write: Level = Level.ADMIN,
        needs_cookie: bool = False,
        is_program: bool = False,
        is_public: bool = False,
        on_unauthorized: Callable[[web.Request], None] | None = None,
    ) -> None:
        """Add a route with the arguments of `Rule`, which are enforced before the handler runs.

        Args:
            method: ``*`` for every method; GET includes HEAD.
        """
        rule = Rule(read, max(read, write), needs_cookie, is_program, is_public, on_unauthorized)
        for each in ("GET", "HEAD") if method == "GET" else (method,):
            self._rules[self._app.router.add_route(each, path, handler)] = rule

    def own(self, key: web.AppKey[Part], part: Part) -> None:
        """Keep a part in the application; it is closed when the coordinator ends."""
        self._app[key] = part

        async def end(_: web.Application) -> None:
            await part.close()

        self._app.on_cleanup.append(end)

    def page(self, request: web.Request, template: str, status: int = 200, **values: object) -> web.Response:
        """Return a page.

        Args:
            template: a file of the folder ``templates``, which also gets ``session`` (or None) and ``static``.
        """
        text = self.templates.get_template(template).render(session=self.access.session(request), **values)
        return web.Response(text=text, status=status, content_type="text/html")

    def failure(self, request: web.Request, error: MeshrayError, status: int | None = None) -> web.Response:
        """Return the page for this error, with the matching HTTP status."""
        status = status_of(error) if status is None else status
        return self.page(request, "failure.html", status, message=error.message, hint=error.hint or "")

    def unauthorized(self, request: web.Request, *, is_member: bool = False) -> web.Response:
        """Return the page that explains how to get a pass.

        Args:
            is_member: the request comes from a member's machine, whose address is not enough for this route.
        """
        template = self.templates.get_template("unauthorized.html")
        text = template.render(session=None, is_member=is_member)
        response = web.Response(text=text, status=401, content_type="text/html")
        response.headers["WWW-Authenticate"] = "Pass"
        if COOKIE in request.cookies:
            forget_cookie(response)
        return response

    def _middleware(self) -> Middleware:
        """Return aiohttp's middleware that answers requests outside of the API."""

        @web.middleware
        async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path.startswith(API_PATH):
                return await handler(request)
            response = await self._answer(request, handler)
            if isinstance(response, web.WebSocketResponse):
                self._connection_limits.expect_end(request.protocol)
            elif request.content.at_eof() and (response.status < 400 or self.access.session(request) is not None):
                self._connection_limits.expect_another(request.protocol)
            else:
                # The server would parse the rest of an unread body as the next request.
                response.force_close()
                self._connection_limits.expect_end(request.protocol)
            return response

        return answer

    async def _complete_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers of every answer, immediately before it is sent: aiohttp's signal on_response_prepare."""
        if request.path.startswith(API_PATH):
            response.headers.update(NO_SCRIPTS)
            return
        request[_BEGUN] = _Begun()
        # By default this header names the HTTP library and its version.
        response.headers["Server"] = "meshray"
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Content-Security-Policy", _policy(request))

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await self.access.run(request, lambda request: self._serve(request, handler))
        except SessionEnded:
            if _BEGUN in request:
                hang_up(request)
            return self.unauthorized(request)
        except MeshrayError as error:
            return self.failure(request, error)
        except web.HTTPException as error:
            return error if error.status < 400 else self._http_failure(request, error)
        except (ConnectionError, asyncio.TimeoutError) as error:
            _log.debug("%s %s: %s", request.method, request.path[:200], error)
            return self.failure(request, MeshrayError("connection_lost", "the connection was lost"), 502)
        except Exception:
            _log.exception("%s %s failed", request.method, request.path[:200])
            cause = MeshrayError("internal_error", "the coordinator failed to process this request")
            return self.failure(request, cause, 500)

    async def _serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        rule = self._rule(request)
        session, is_write = self.access.session(request), _is_write(request)
        if not rule.is_public:
            if session is None or (rule.needs_cookie and not session.has_cookie):
                if rule.on_unauthorized is not None:
                    rule.on_unauthorized(request)
                return self.unauthorized(request, is_member=session is not None)
            _require_same_site(request)
        if is_write:
            _require_own_origin(request)
        if not rule.is_public:
            session = self.access.require(request, rule.write if is_write else rule.read)
            if is_write and not rule.is_program:
                await _require_csrf(request, session)
        return await handler(request)

    def _rule(self, request: web.Request) -> Rule:
        return self._rules.get(request.match_info.route, _UNKNOWN)

    def _http_failure(self, request: web.Request, error: web.HTTPException) -> web.Response:
        if self.access.session(request) is None and not self._rule(request).is_public:
            # A client without a session must not learn which pages exist.
            return self.unauthorized(request)
        what = {404: "There is no such page", 405: "This page does not accept that method"}.get(
            error.status, error.reason
        )
        response = self.failure(request, MeshrayError("page_failed", what), error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response


def is_gone(request: web.Request) -> bool:
    """Return whether the browser has closed the connection."""
    return request.transport is None or request.transport.is_closing()


def hang_up(request: web.Request) -> None:
    """End the connection at once: only that shows that an answer which has begun is not complete."""
    if request.transport is not None:
        request.transport.abort()


async def form_of(request: web.Request) -> dict[str, str]:
    """Return the fields of a form. Raises RefusedError ``form_unreadable``."""
    unreadable = RefusedError("form_unreadable", "the form could not be read", hint="load the page again")
    try:
        fields = await asyncio.wait_for(request.post(), BODY_S)
    except (asyncio.TimeoutError, ValueError, web.RequestPayloadError):
        raise unreadable from None
    if not all(isinstance(value, str) for value in fields.values()):
        raise unreadable
    return {name: str(value) for name, value in fields.items()}


def _is_write(request: web.Request) -> bool:
    return request.method not in _READS or "Upgrade" in request.headers


def _require_same_site(request: web.Request) -> None:
    """Refuse what another page requests with this browser's cookie; a link in another page may be followed."""
    source, mode = request.headers.get("Sec-Fetch-Site", "none"), request.headers.get("Sec-Fetch-Mode", "")
    if source not in ("none", "same-origin") and not (mode == "navigate" and request.method in _READS):
        raise _foreign()


def _require_own_origin(request: web.Request) -> None:
    """Refuse a request that changes something unless it says that it comes from a page of this host."""
    origin = request.headers.get("Origin", "")
    if not request.host or origin.lower() != f"https://{request.host}".lower():
        raise _foreign()


def _foreign() -> RefusedError:
    return RefusedError("origin_foreign", "this request does not come from a page of this coordinator")


async def _require_csrf(request: web.Request, session: Session) -> None:
    shown: object = request.headers.get(CSRF_HEADER)
    if shown is None and request.content_type in ("application/x-www-form-urlencoded", "multipart/form-data"):
        shown = (await form_of(request)).get(CSRF_FIELD)
    if not same_csrf(session, shown):
        raise RefusedError("csrf_wrong", "this form is too old, or not from this page", hint="load the page again")


def _policy(request: web.Request) -> str:
    # Programs of the cluster have the same origin: a page's scripts and styles come from its own folder only.
    own = f"https://{request.host}/static/" if POLICY_HOST.fullmatch(request.host) else "'self'"
    return (
        f"default-src 'none'; script-src {own}; style-src {own}; img-src {own} data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
