"""`meshray ready`: one cheap question for probes of pods and for scripts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from meshray.cli.app import App
from meshray.cli.options import json_option, parse_duration
from meshray.cli.result import UNHEALTHY, Result
from meshray.cli.tables import Paint, plain
from meshray.errors import UnreachableError
from meshray.protocol.control import GetReadiness, Readiness

_POLL_S = 0.5


@dataclass(frozen=True)
class ReadyResult(Result[Readiness]):
    """``ready``."""

    @property
    def exit_code(self) -> int:
        """3 if the node is not ready."""
        return 0 if self.answer.ready else UNHEALTHY

    def text(self, paint: Paint = plain) -> str:
        """Return the state of the node, and what is missing."""
        return f"ready: {self.answer.reason}" if self.answer.ready else f"not ready: {self.answer.reason}"


@click.command("ready")
@click.option("--wait", default="0", metavar="TIME", help="Wait up to TIME until the node is ready: 60s, 10m.")
@json_option
@click.pass_obj
def ready_command(app: App, wait: str) -> ReadyResult:
    """Succeed once this node's Ray is ALIVE.

    \b
    Examples:
      meshray ready               a readiness probe; it asks the agent on this machine only
      meshray ready --wait 2m && ray job submit ...

    On a node without Ray it succeeds once the overlay works. Exit code 3 when the node is not ready.
    """
    deadline = time.monotonic() + parse_duration(wait)
    while True:
        try:
            result = ReadyResult(app.control().request(GetReadiness()))
        except UnreachableError:
            # The agent may be starting.
            if time.monotonic() >= deadline:
                raise
        else:
            if result.answer.ready or time.monotonic() >= deadline:
                return result
        time.sleep(_POLL_S)
