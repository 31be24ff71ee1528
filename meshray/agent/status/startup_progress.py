"""The startup progress of a node, stage by stage, for clients that follow it.

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
    """The events so far. Followers that connect late receive all of them, until the node is up."""

    def __init__(self) -> None:
        self._events: list[StageEvent] = []
        self._summary: Summary | None = None
        self._error: MeshrayError | None = None
        self._changed = asyncio.Event()

    def set(self, stage: str, state: str, detail: str = "") -> None:
        """Set the state of one stage; a repeated state is reported once."""
        event = StageEvent(stage, state, detail)
        if next((previous for previous in reversed(self._events) if previous.stage == stage), None) == event:
            return
        self._events.append(event)
        self._notify()

    def fail(self, stage: str, error: MeshrayError) -> None:
        """Report that the stage did not finish in time; the agent keeps trying."""
        self.set(stage, FAIL, error.message)
        self._error = error
        self._notify()

    def finish(self, summary: Summary) -> None:
        """Report that the node is up."""
        self._error = None
        self._summary = summary
        self._notify()

    @property
    def up(self) -> bool:
        """Whether every stage is complete."""
        return self._summary is not None

    async def follow(self, emit: Emit) -> Up:
        """Emit every event until the node is up, and return the summary. If it is up, emit each stage's last event."""
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
