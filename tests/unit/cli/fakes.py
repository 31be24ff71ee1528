"""A command line whose agent is a table of answers, and which records its requests."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from meshray.cli import main
from meshray.cli.app import App
from meshray.errors import MeshrayError, UnreachableError
from meshray.protocol.codec import convert, to_json
from meshray.protocol.control import Request, Watch

A = TypeVar("A")
E = TypeVar("E")

Answer = Mapping[str, object] | MeshrayError | list[Mapping[str, object]]


@dataclass
class FakeAgent:
    """Answer operations from a table; an operation without an entry finds no agent."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def request(self, request: Request[A], *, timeout_s: float = 10) -> A:
        return convert(self.request_json(request, timeout_s=timeout_s), request.answer_type())

    def request_json(self, request: Request[A], *, timeout_s: float = 10) -> Mapping[str, object]:
        return self._answers(request)[-1]

    def watch(self, request: Watch[E, A], on_event: Callable[[E], None], *, timeout_s: float) -> A:
        *events, answer = self._answers(request)
        for event in events:
            on_event(convert(event, request.event_type()))
        return convert(answer, request.answer_type())

    def _answers(self, request: Request[A]) -> list[Mapping[str, object]]:
        requests = to_json(request)
        op = str(requests.pop("op"))
        self.asked.append((op, requests))
        answer = self.answers.get(
            op, UnreachableError("agent_down", "no agent runs on this machine", hint="meshray up")
        )
        if isinstance(answer, MeshrayError):
            raise answer
        return answer if isinstance(answer, list) else [answer]


class FakeApp(App):
    """The command line in front of a fake agent, with its output recorded."""

    agent: FakeAgent

    def control(self) -> Any:
        return self.agent

    def run_from_copy(self) -> None:
        """Continue in this process, whichever user's environment it is."""


@dataclass
class Outcome:
    code: int
    out: str
    err: str
    agent: FakeAgent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def type_in(
    *arguments: str,
    agent: FakeAgent | None = None,
    environ: Mapping[str, str] | None = None,
    euid: int = 0,
    stdin: io.StringIO | None = None,
) -> Outcome:
    """Run one command line."""
    plain = main.app_for(arguments)
    app = FakeApp(
        tuple(arguments),
        as_json=plain.as_json,
        environ=dict(environ or {"MESHRAY_HOME": "/nonexistent/meshray"}),
        stdin=stdin or io.StringIO(),
        stdout=io.StringIO(),
        stderr=io.StringIO(),
        euid=euid,
    )
    object.__setattr__(app, "agent", agent or FakeAgent())
    code = main.run(app)
    assert isinstance(app.stdout, io.StringIO)
    assert isinstance(app.stderr, io.StringIO)
    return Outcome(code, app.stdout.getvalue(), app.stderr.getvalue(), app.agent)
