"""The pages that show the mesh, and the events that keep them current: the handlers of GET requests.

    GET /                the map and the table of nodes; ?node=NAME selects a node
    GET /matrix          the paths of all pairs
    GET /nodes/<name>    one node
    GET /events          server-sent events for one of these pages

`meshray.web.frame` authorizes each request before its handler runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable
from urllib.parse import urlencode

from aiohttp import web

from meshray.coordinator.observations import Observations
from meshray.coordinator.service import Service
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR
from meshray.protocol.status import Status
from meshray.web.access import Access, Level, Session
from meshray.web.channel import Channel
from meshray.web.compression import SharedText, gzipped
from meshray.web.filters import node_address
from meshray.web.fragments import Topic
from meshray.web.frame import Site, hang_up, is_gone
from meshray.web.live import Live
from meshray.web.view import MeshView

#: A browser that has not read an event within this time is disconnected, seconds.
WRITE_S = 15.0
#: A closed browser is noticed within this time, seconds.
LOOK_S = 1.0
#: The maximum length of a name; no node has a longer one.
_LONGEST_NAME = 253

#: The updater of an application's pages.
LIVE = web.AppKey("live", Live)

_log = logging.getLogger(__name__)


class ServiceSource:
    """The view's source: the coordinator's service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def map(self) -> MeshMap:
        """The current map."""
        return self._service.map

    @property
    def observations(self) -> Observations:
        """The agents' reports."""
        return self._service.observations

    async def own_status(self) -> Status | None:
        """Return the status of the coordinator's own agent; None: it does not answer."""
        return await self._service.own_agent.status()


class Pages:
    """The handlers."""

    def __init__(self, live: Live, access: Access) -> None:
        self._live = live
        self._access = access
        #: Where the main part of a page belongs. No text of a user can be it.
        self._mark = secrets.token_hex(16)

    async def map(self, request: web.Request) -> web.StreamResponse:
        """Answer GET /."""
        return await self._page(request, Topic("map", _name(request.query.get("node", ""))))

    async def matrix(self, request: web.Request) -> web.StreamResponse:
        """Answer GET /matrix."""
        return await self._page(request, Topic("matrix"))

    async def node(self, request: web.Request) -> web.StreamResponse:
        """Answer GET /nodes/<name>. Raises HTTPNotFound."""
        name = _name(request.match_info["name"])
        return await self._page(request, Topic("node", name))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Answer GET /events. Raises HTTPNotFound or HTTPServiceUnavailable."""
        topic = _topic(request)
        view = await self._live.view()
        if topic.page == "node" and view.named(topic.node) is None:
            raise web.HTTPNotFound
        if self._live.is_full:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "30"})
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        if request.method == "HEAD":
            return response
        self._access.hold(request)
        with (
            self._live.following(topic, request.query.get("version", "")) as viewer,
            contextlib.suppress(ConnectionResetError),
        ):
            await response.prepare(request)
            await _write(request, response.write(b"retry: 2000\n\n"))
            while not is_gone(request):
                event = await viewer.next(LOOK_S)
                if event:
                    await _write(request, response.write(event))
        return response

    async def _page(self, request: web.Request, topic: Topic) -> web.StreamResponse:
        view = await self._live.view()
        node = view.named(topic.node)
        if topic.page == "node" and node is None:
            raise web.HTTPNotFound
        if node is None:
            topic = Topic(topic.page)  # A node that was removed is not selected any longer.
        channel, session = self._live.channel(topic), self._access.session(request)
        query = {"page": topic.page, "version": self._live.version} | ({"node": topic.node} if topic.node else {})
        values = {
            "main": self._mark,
            "mesh": view.name,
            "events": f"/events?{urlencode(query)}",
            "navigation": _navigation(session),
            "here": request.path,
            "session": session,
            "name": topic.node,
            "actions": _actions(session, view, topic),
        }
        page = self._live.renderer.page(f"{topic.page}.html", values)
        head, _, tail = (part.encode() for part in page.partition(self._mark))
        return _answer(request, head, self._main(topic, view, channel), tail)

    def _main(self, topic: Topic, view: MeshView, channel: Channel) -> SharedText:
        """Return what all sessions have in common on this page, made once for its state."""
        if channel.main is None:
            parts = {key: fragment.html for key, fragment in channel.fragments.items()}
            values = {"parts": parts, "mesh": view.name, "name": topic.node}
            channel.main = SharedText(self._live.renderer.page(f"{topic.page}_main.html", values))
        return channel.main


def _answer(request: web.Request, head: bytes, main: SharedText, tail: bytes) -> web.Response:
    headers = {"Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        headers["Content-Encoding"] = "gzip"
        body = gzipped(head, main, tail)
    else:
        body = b"".join((head, main.plain, tail))
    return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)


def _navigation(session: Session | None) -> list[tuple[str, str]]:
    links = [("/", "Map"), ("/matrix", "Matrix")]
    if session is not None and session.has_cookie:
        links.append(("/ray/#/cluster", "Ray dashboard"))
    if _is_admin(session):
        links.append(("/tokens", "Tokens"))
    return links


def _is_admin(session: Session | None) -> bool:
    return session is not None and session.level >= Level.ADMIN


def _actions(session: Session | None, view: MeshView, topic: Topic) -> str:
    """Return the address at which an administrator removes the node; the coordinator's node cannot be removed."""
    node = view.named(topic.node) if topic.page == "node" and _is_admin(session) else None
    return f"{node_address(node.name)}/remove" if node is not None and COORDINATOR not in node.roles else ""


def _topic(request: web.Request) -> Topic:
    name = _name(request.query.get("node", ""))
    match request.query.get("page"):
        case "map":
            return Topic("map", name)
        case "matrix":
            return Topic("matrix")
        case "node":
            return Topic("node", name)
    raise web.HTTPNotFound


def _name(text: str) -> str:
    return text.lower() if len(text) <= _LONGEST_NAME else ""


async def _write(request: web.Request, writing: Awaitable[None]) -> None:
    """Write to the browser; one that does not read is disconnected."""
    try:
        await asyncio.wait_for(writing, WRITE_S)
    except asyncio.TimeoutError:
        _log.info("a browser at %s did not read its events and was disconnected", request.remote)
        hang_up(request)
        raise ConnectionResetError("the browser does not read") from None


def add(site: Site) -> Live:
    """Add these pages to the site; return their updater."""
    release = site.files.url("live.js").split("/")[2]
    live = Live(ServiceSource(site.service), site.templates, release)
    site.own(LIVE, live)
    pages = Pages(live, site.access)
    site.add("GET", "/", pages.map)
    site.add("GET", "/matrix", pages.matrix)
    site.add("GET", "/nodes/{name}", pages.node)
    site.add("GET", "/events", pages.events)
    return live
