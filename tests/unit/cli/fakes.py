"""A command line whose agent is a table of answers, and which remembers what was asked."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshray.cli import main
from meshray.cli.app import App
from meshray.errors import MeshrayError, UnreachableError

Answer = Mapping[str, object] | MeshrayError | list[Mapping[str, object]]


@dataclass
class FakeAgent:
    """Answers operations from a table; no entry means that it does not run."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def ask(self, op: str, *, timeout_s: float = 10, **fields: object) -> Mapping[str, object]:
        *_, last = self.stream(op, timeout_s=timeout_s, **fields)
        return last

    def stream(self, op: str, *, timeout_s: float, **fields: object) -> Iterator[Mapping[str, object]]:
        self.asked.append((op, fields))
        answer = self.answers.get(
            op, UnreachableError("agent_down", "no agent runs on this machine", hint="meshray up")
        )
        if isinstance(answer, MeshrayError):
            raise answer
        yield from answer if isinstance(answer, list) else [answer]


class FakeApp(App):
    """The command line in front of a fake agent, with its streams kept."""

    agent: FakeAgent

    def control(self) -> Any:
        return self.agent

    def run_from_copy(self) -> None:
        """The tests go on in this process, whosever environment it is."""


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
    """Runs one command line."""
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
