"""The current view of the mesh, and the open pages that follow it.

    reports, map ─┐ every TICK_S, if something changed
    own agent ────┴──► view ──news: at once, numbers: every NUMBERS_S──► fragments of each topic ──► its channel

Only open pages cost anything: without a viewer nothing is computed, and the own agent is not queried. A change is
computed, rendered and encoded once for all pages of a topic.

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
from collections.abc import Iterator
from typing import Protocol

from jinja2 import Environment

from meshray.errors import MeshrayError
from meshray.linux.tasks import Tasks
from meshray.model.meshmap import MeshMap
from meshray.protocol.status import Status
from meshray.web.channel import BEAT, RELOAD, Channel, Viewer
from meshray.web.fragments import Fragments, Renderer, Topic
from meshray.web.view import MeshView, Observations, build

#: The interval of checks for changes while a page is open, seconds. A check that finds none costs microseconds.
TICK_S = 0.2
#: Numbers that change are gathered for this time, seconds: in a mesh of 200 nodes some change in every tick, and a
#: browser lays out its table again for each event.
NUMBERS_S = 0.6
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
#: The number of topics without a viewer whose state is kept, for pages that are about to follow.
MAX_IDLE = 8

#: Longer numbers of a state are not ours.
_LONGEST_NUMBER = 15

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
        #: In the order in which they were used last.
        self._channels: dict[Topic, Channel] = {}
        self._tasks = Tasks()
        self._is_following = False
        self._status: Status | None = None
        self._status_at = self._queried_at = float("-inf")
        self._query: asyncio.Task[None] | None = None
        self._view: MeshView | None = None
        self._built_from: tuple[object, ...] = ()
        self._published: MeshView | None = None
        self._published_at = float("-inf")
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
        """The name of the published state, which a page sends back when it starts to follow."""
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

    def channel(self, topic: Topic) -> Channel:
        """Return the published state of this topic."""
        channel = self._channels.pop(topic, None)
        if channel is None:
            channel = Channel(self._fragments(topic), self._number)
        elif channel.number != self._number:
            channel.update(self._fragments(topic), self._number, time.time())
        self._channels[topic] = channel
        idle = [key for key, other in self._channels.items() if not other.viewers]
        for key in idle[:-MAX_IDLE]:
            del self._channels[key]
        return channel

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
        self._refresh()
        channel = self.channel(topic)
        viewer = Viewer()
        viewer.follow(channel.whole)
        channel.viewers.add(viewer)
        self._catch_up(viewer, channel, version)
        if not self._is_following:
            self._is_following = True
            self._tasks.start(self._follow(), "page")
        try:
            yield viewer
        finally:
            channel.viewers.discard(viewer)

    def _catch_up(self, viewer: Viewer, channel: Channel, version: str) -> None:
        """Send what a page of this version does not show."""
        release, _, state = version.partition("-")
        boot, _, number = state.partition("-")
        if release != self._release:
            viewer.put(RELOAD)
            return
        known = boot == self._boot and len(number) <= _LONGEST_NUMBER and number.isdecimal()
        missed = channel.missed(int(number)) if known else None
        if missed is None:
            viewer.fall_behind()
        elif missed:
            viewer.put(missed)

    async def close(self) -> None:
        """End the tasks."""
        await self._tasks.close()

    async def _follow(self) -> None:
        last_beat = time.monotonic()
        try:
            while self.viewers:
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
                        channel.send(BEAT)
        finally:
            self._is_following = False
            self._channels.clear()

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
        """Build the view again if something changed, and publish it if it is time."""
        source = self._source
        mesh_map = source.map
        state = mesh_map.revision, source.observations.revision, self._status
        if self._view is None or state != self._built_from:
            self._view = build(mesh_map, source.observations, self._status, self._view)
            self._built_from = state
        view, published = self._view, self._published
        is_due = time.monotonic() - self._published_at >= NUMBERS_S
        if published is None or view.news != published.news or (is_due and view is not published):
            self._publish(view)
        return view

    def _publish(self, view: MeshView) -> None:
        """Send the differences to the viewers."""
        self._published, self._published_at = view, time.monotonic()
        self._number += 1
        now = time.time()
        for topic, channel in self._channels.items():
            if channel.viewers:
                channel.update(self._fragments(topic), self._number, now)

    def _fragments(self, topic: Topic) -> Fragments:
        view = self._published or self._refresh()
        return self.renderer.fragments(topic, view, time.time())
