"""How far a starting node has come, stage by stage, for whoever watches.

coordinator ──► overlay ──► firewall ──► ray ──► up

>>> progress = Progress()
>>> progress.set("overlay", "ok", "kernel WireGuard, 10.99.0.2")
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from meshray.errors import MeshrayError

STAGES = ("coordinator", "overlay", "firewall", "ray")
RUN, OK, FAIL, SKIP = "run", "ok", "fail", "skip"

Emit = Callable[[Mapping[str, object]], Awaitable[None]]


class Progress:
    """What happened so far; who comes late is told all of it, until the node is up."""

    def __init__(self) -> None:
        self._events: list[dict[str, object]] = []
        self._summary: Mapping[str, object] | None = None
        self._error: MeshrayError | None = None
        self._changed = asyncio.Event()

    def set(self, stage: str, state: str, detail: str = "") -> None:
        """One stage has come to this state; saying the same twice is heard once."""
        event: dict[str, object] = {"stage": stage, "state": state, "detail": detail}
        if next((seen for seen in reversed(self._events) if seen["stage"] == stage), None) == event:
            return
        self._events.append(event)
        self._tell()

    def fail(self, stage: str, error: MeshrayError) -> None:
        """The stage did not get there in time; the agent goes on trying all the same."""
        self.set(stage, FAIL, error.message)
        self._error = error
        self._tell()

    def finish(self, summary: Mapping[str, object]) -> None:
        """The node is up."""
        self._error = None
        self._summary = summary
        self._tell()

    @property
    def up(self) -> bool:
        """Whether every stage was reached."""
        return self._summary is not None

    async def follow(self, emit: Emit) -> Mapping[str, object]:
        """Emit every event, past and to come, and return the summary. Of a node that is up, the last of each stage.

        Raises:
            MeshrayError: a stage failed.
        """
        told = 0
        if self._summary is not None:
            last = {event["stage"]: event for event in self._events}
            for event in last.values():
                await emit(event)
            told = len(self._events)
        while True:
            changed = self._changed
            for event in self._events[told:]:
                told += 1
                await emit(event)
            if self._summary is not None:
                return {"stage": "up", "state": OK, "summary": self._summary}
            if self._error is not None:
                raise self._error
            await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
