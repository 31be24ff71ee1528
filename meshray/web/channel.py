"""The open pages of one topic: the state that they show, and the changes on their way.

    fragments ──update──► one change as bytes ──┬──► viewer (bounded queue) ──► browser
                                                └──► viewer

The recent changes are kept: a page begins to follow some time after it was made, and then needs only what it missed.

>>> channel = Channel(fragments, 1)
>>> channel.update(later, 2, now)
>>> channel.missed(1)
b'event: change\\ndata: {"at":…}\\n\\n'
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import msgspec

from meshray.web.compression import SharedText
from meshray.web.fragments import Difference, Fragments, difference, whole

#: The number of changes that wait for one viewer. One that falls behind gets the whole state instead.
MAX_PENDING = 8
#: The number of recent changes that are kept. A page takes about a second until it follows.
MAX_RECENT = 16

BEAT = b"event: beat\ndata: 1\n\n"
RELOAD = b"event: reload\ndata: 1\n\n"


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


class Channel:
    """The viewers of one topic, and the state that they have.

    Args:
        fragments: the state; empty for a node that does not exist.
        number: the number of this state.

    Attributes:
        main: the main part of the topic's page in this state; None: not made yet.
    """

    def __init__(self, fragments: Fragments, number: int) -> None:
        self.fragments = fragments
        self.number = number
        self.viewers: set[Viewer] = set()
        self.main: SharedText | None = None
        self._whole: bytes | None = None
        #: The recent changes, each with the number of the state to which it leads; and the state before the first one.
        self._recent: deque[tuple[int, bytes]] = deque()
        self._since = number

    def update(self, fragments: Fragments, number: int, at: float) -> None:
        """Send the difference to all viewers.

        Args:
            at: unix seconds.
        """
        changed = difference(self.fragments, fragments) if fragments else None
        self.fragments, self.number = fragments, number
        if changed is not None and not changed:
            return
        self.main = self._whole = None
        event = _event(changed, at) if changed is not None else RELOAD
        if len(self._recent) >= MAX_RECENT:
            self._since, _ = self._recent.popleft()
        self._recent.append((number, event))
        self.send(event)

    def send(self, event: bytes) -> None:
        """Send an event to all viewers."""
        for viewer in self.viewers:
            viewer.put(event)

    def missed(self, number: int) -> bytes | None:
        """Return the events that lead from the state of this number to the current one; None: it is too old."""
        if number < self._since:
            return None
        return b"".join(event for after, event in self._recent if after > number)

    def whole(self) -> bytes:
        """Return the event with the whole state, made once for all viewers."""
        if self._whole is None:
            self._whole = _event(whole(self.fragments), time.time()) if self.fragments else RELOAD
        return self._whole


def _event(changed: Difference, at: float) -> bytes:
    body: dict[str, object] = {"at": round(at, 2)}
    if changed.elements:
        body["set"] = dict(changed.elements)
    if changed.cells:
        body["cells"] = changed.cells
    return b"event: change\ndata: " + msgspec.json.encode(body) + b"\n\n"
