"""The current view of the mesh, and the open pages that follow it.

    reports, map ─┐ every TICK_S, if something changed            ┌─► viewer (bounded queue) ──► browser
    own agent ────┴──► view ──► fragments of each topic ──► bytes ┼─► viewer
                       once      once                       once  └─► viewer

Only open pages cost anything: without a viewer nothing is computed, and the own agent is not queried.

>>> live = Live(source, templates, release)
>>> view = await live.view()
>>> with live.following(Topic("map"), version) as viewer:
...     await viewer.next(timeout_s=1)
b'event: change\\ndata: {"at":…}\\n\\n'
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec
from jinja2 import Environment

from meshray.errors import MeshrayError
from meshray.linux.tasks import Tasks
from meshray.model.meshmap import MeshMap
from meshray.protocol.status import Status
from meshray.web.fragments import Difference, Fragments, Renderer, Topic, difference, whole
from meshray.web.view import MeshView, Observations, build

#: The interval of checks for changes while a page is open, seconds.
TICK_S = 0.3
#: The minimum interval of queries to the own agent, seconds.
STATUS_EVERY_S = 1.0
#: A page waits at most this long for the first status, seconds.
FIRST_STATUS_S = 0.6
#: A status is shown for this long after the agent has stopped answering, seconds.
STATUS_LASTS_S = 10.0
#: Viewers get a heartbeat at this interval, seconds; the page reconnects after 25 s of silence.
BEAT_S = 10.0
#: The number of open pages. Each holds a connection.
MAX_VIEWERS = 128
#: The number of changes that wait for one viewer. One that falls behind gets the whole state instead.
MAX_PENDING = 8

_BEAT = b"event: beat\ndata: 1\n\n"
_RELOAD = b"event: reload\ndata: 1\n\n"
_log = logging.getLogger(__name__)


class Source(Protocol):
    """The source of the view: the coordinator's service."""

    @property
    def map(self) -> MeshMap:
        """The current map."""

    @property
    def observations(self) -> CountedObservations:
        """The agents' reports."""

    async def own_status(self) -> Status | None:
        """Return the status of the coordinator's own agent; None: it does not answer."""


class CountedObservations(Observations, Protocol):
    """Reports with a number that increases with every change."""

    revision: int


class Viewer:
    """One open page: the events that wait for it."""

    def __init__(self) -> None:
        self.is_behind = False
        self._pending: deque[bytes] = deque()
        self._has_events = asyncio.Event()
        self._whole: Callable[[], bytes] = bytes

    def follow(self, current: Callable[[], bytes]) -> None:
        """Set the function that returns the whole state of the page."""
        self._whole = current

    def fall_behind(self) -> None:
        """Send the whole state next, instead of what waits."""
        self._pending.clear()
        self.is_behind = True
        self._has_events.set()

    def put(self, event: bytes) -> None:
        """Queue this event. A viewer whose queue is full gets the whole state instead, because its browser is slow."""
        if self.is_behind:
            return
        if len(self._pending) >= MAX_PENDING:
            self.fall_behind()
            return
        self._pending.append(event)
        self._has_events.set()

    async def next(self, timeout_s: float) -> bytes:
        """Return the next event; empty if there is none within this time."""
        try:
            await asyncio.wait_for(self._has_events.wait(), timeout_s)
        except asyncio.TimeoutError:
            return b""
        if self.is_behind:
            self.is_behind = False
            event = self._whole()
        else:
            event = self._pending.popleft()
        if not self._pending:
            self._has_events.clear()
        return event


class _Channel:
    """The viewers of one topic, and the state that they have."""

    def __init__(self, fragments: Fragments) -> None:
        self.fragments = fragments
        self.viewers: set[Viewer] = set()
        self._whole: bytes | None = None

    def update(self, fragments: Fragments, at: float) -> None:
        """Send the difference to all viewers."""
        changed = difference(self.fragments, fragments) if fragments else None
        self.fragments = fragments
        if changed is None:
            self.send(_RELOAD)
        elif changed:
            self._whole = None
            self.send(_event(changed, at))

    def send(self, event: bytes) -> None:
        """Send an event to all viewers."""
        for viewer in self.viewers:
            viewer.put(event)

    def whole(self) -> bytes:
        """Return the event with the whole state, made once for all viewers."""
        if self._whole is None:
            self._whole = _event(whole(self.fragments), time.time()) if self.fragments else _RELOAD
        return self._whole


class Live:
    """The current view, and its viewers. Needs an event loop.

    Args:
        templates: the environment of the page's templates.
        release: changes with the files of the page; a page of another one is loaded again.
    """

    def __init__(self, source: Source, templates: Environment, release: str) -> None:
        self._source = source
        self._templates = templates
        self._release = release
        self._renderer: Renderer | None = None
        self._channels: dict[Topic, _Channel] = {}
        self._tasks = Tasks()
        self._is_following = False
        self._status: Status | None = None
        self._status_at = self._queried_at = float("-inf")
        self._query: asyncio.Task[None] | None = None
        self._view: MeshView | None = None
        self._built_from: tuple[object, ...] = ()
        #: Distinguishes the states of this process from those of earlier ones.
        self._boot, self._number = secrets.token_hex(4), 0

    @property
    def renderer(self) -> Renderer:
        """The renderer of this process; made for the first page."""
        if self._renderer is None:
            self._renderer = Renderer(self._templates)
        return self._renderer

    @property
    def version(self) -> str:
        """The name of the current state, which a page sends back when it starts to follow."""
        return f"{self._release}-{self._boot}-{self._number}"

    @property
    def viewers(self) -> int:
        """The number of open pages."""
        return sum(len(channel.viewers) for channel in self._channels.values())

    @property
    def is_full(self) -> bool:
        """Whether no further page can follow."""
        return self.viewers >= MAX_VIEWERS

    async def view(self) -> MeshView:
        """Return the view of this moment; its Ray is at most a second old if the own agent answers quickly."""
        query = self._query_agent()
        if query is not None and self._status is None:
            await asyncio.wait([query], timeout=FIRST_STATUS_S)
        return self._refresh()

    @contextlib.contextmanager
    def following(self, topic: Topic, version: str) -> Iterator[Viewer]:
        """Yield a viewer of this topic.

        Args:
            version: of the state that its page shows.

        Raises:
            MeshrayError: busy, if too many pages are open.
        """
        if self.is_full:
            raise MeshrayError("busy", f"{MAX_VIEWERS} pages are open, which is the limit", hint="close some of them")
        view = self._refresh()
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = _Channel(self.renderer.fragments(topic, view, time.time()))
        viewer = Viewer()
        viewer.follow(channel.whole)
        channel.viewers.add(viewer)
        if version.partition("-")[0] != self._release:
            viewer.put(_RELOAD)  # The page is of another release.
        elif version != self.version:
            viewer.fall_behind()
        if not self._is_following:
            self._is_following = True
            self._tasks.start(self._follow(), "page")
        try:
            yield viewer
        finally:
            channel.viewers.discard(viewer)
            if not channel.viewers and self._channels.get(topic) is channel:
                del self._channels[topic]

    async def close(self) -> None:
        """End the tasks."""
        await self._tasks.close()

    async def _follow(self) -> None:
        last_beat = time.monotonic()
        try:
            while self._channels:
                await asyncio.sleep(TICK_S)
                try:
                    self._query_agent()
                    self._refresh()
                except Exception:
                    # An error of the page must not stop the coordinator, nor the page for ever.
                    _log.exception("the page could not be updated")
                    await asyncio.sleep(1)
                if time.monotonic() - last_beat >= BEAT_S:
                    last_beat = time.monotonic()
                    for channel in self._channels.values():
                        channel.send(_BEAT)
        finally:
            self._is_following = False

    def _query_agent(self) -> asyncio.Task[None] | None:
        """Query the own agent if the last query is old enough; return the query in progress."""
        now = time.monotonic()
        if self._query is not None and not self._query.done():
            return self._query
        if now - self._queried_at < STATUS_EVERY_S:
            return None
        self._queried_at = now
        self._query = self._tasks.start(self._update_status(), "status of the own agent")
        return self._query

    async def _update_status(self) -> None:
        status = await self._source.own_status()
        now = time.monotonic()
        if status is not None:
            self._status, self._status_at = status, now
        elif now - self._status_at > STATUS_LASTS_S:
            self._status = None

    def _refresh(self) -> MeshView:
        """Build the view again if something changed, and send the differences to the viewers."""
        source = self._source
        mesh_map = source.map
        state = mesh_map.revision, source.observations.revision, self._status
        if self._view is not None and state == self._built_from:
            return self._view
        view = build(mesh_map, source.observations, self._status, self._view)
        self._view, self._built_from = view, state
        self._number += 1
        now = time.time()
        for topic, channel in self._channels.items():
            channel.update(self.renderer.fragments(topic, view, now), now)
        return view


def _event(changed: Difference, at: float) -> bytes:
    body: dict[str, object] = {"at": round(at, 2)}
    if changed.elements:
        body["set"] = dict(changed.elements)
    if changed.cells:
        body["cells"] = changed.cells
    return b"event: change\ndata: " + msgspec.json.encode(body) + b"\n\n"
