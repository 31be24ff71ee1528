"""How far a starting node has come, stage by stage, for whoever watches.

coordinator ──► overlay ──► firewall ──► ray ──► up

>>> progress = Progress()
>>> progress.set("overlay", "ok", "kernel WireGuard, 10.99.0.2")
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from meshray.errors import MeshrayError
from meshray.protocol.control import StageEvent, Summary, Up

STAGES = ("coordinator", "overlay", "firewall", "ray")
RUN, OK, FAIL, SKIP = "run", "ok", "fail", "skip"

Emit = Callable[[msgspec.Struct], Awaitable[None]]


class Progress:
    """What happened so far. Followers that connect late receive all of it, until the node is up."""

    def __init__(self) -> None:
        self._events: list[StageEvent] = []
        self._summary: Summary | None = None
        self._error: MeshrayError | None = None
        self._changed = asyncio.Event()

    def set(self, stage: str, state: str, detail: str = "") -> None:
        """One stage has come to this state; saying the same twice is heard once."""
        event = StageEvent(stage, state, detail)
        if next((seen for seen in reversed(self._events) if seen.stage == stage), None) == event:
            return
        self._events.append(event)
        self._notify()

    def fail(self, stage: str, error: MeshrayError) -> None:
        """The stage did not get there in time; the agent goes on trying all the same."""
        self.set(stage, FAIL, error.message)
        self._error = error
        self._notify()

    def finish(self, summary: Summary) -> None:
        """The node is up."""
        self._error = None
        self._summary = summary
        self._notify()

    @property
    def up(self) -> bool:
        """Whether every stage was reached."""
        return self._summary is not None

    async def follow(self, emit: Emit) -> Up:
        """Emit every event, past and to come, and return the summary. Of a node that is up, the last of each stage.

        Raises:
            MeshrayError: a stage failed.
        """
        sent = 0
        if self._summary is not None:
            last = {event.stage: event for event in self._events}
            for event in last.values():
                await emit(event)
            sent = len(self._events)
        while True:
            changed = self._changed
            for event in self._events[sent:]:
                sent += 1
                await emit(event)
            if self._summary is not None:
                return Up(state=OK, summary=self._summary)
            if self._error is not None:
                raise self._error
            await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
