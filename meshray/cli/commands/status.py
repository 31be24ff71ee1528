"""`meshray status`: show every node with its path and its Ray, once or repeatedly."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import click

from meshray.cli import output
from meshray.cli.app import App
from meshray.cli.options import json_option
from meshray.cli.result import UNHEALTHY, Result
from meshray.cli.status_table import status_text
from meshray.cli.tables import Paint, plain
from meshray.errors import InterruptedByUser
from meshray.protocol.codec import convert
from meshray.protocol.control import GetStatus
from meshray.protocol.status import Status

#: The status takes one request to Ray's head.
_WATCH_S = 2.0


@dataclass(frozen=True)
class StatusResult(Result[Status]):
    """``status``: the mesh, according to this machine's agent.

    Attributes:
        wide: users also see WireGuard's data on each path.
        clock: the time of day, for users who watch it.
    """

    wide: bool = False
    clock: str = ""

    @property
    def exit_code(self) -> int:
        """3 if the agent reports a problem or the coordinator is away."""
        return 0 if self.answer.coordinator.reachable and not self.answer.problems else UNHEALTHY

    def text(self, paint: Paint = plain) -> str:
        """Return the mesh and every node."""
        return status_text(self.answer, now=time.time(), wide=self.wide, clock=self.clock, paint=paint)


@click.command("status")
@click.option(
    "--wide",
    is_flag=True,
    help="Also show loss, handshake, MTU, bytes and endpoint of each path, and the chosen ports of Ray.",
)
@click.option("--watch", is_flag=True, help="Refresh every two seconds, until Ctrl-C.")
@json_option
@click.pass_obj
def status_command(app: App, wide: bool, watch: bool) -> StatusResult | int:
    """Show every node, its path and the resources of the cluster.

    \b
    Examples:
      meshray status
      meshray status --json | jq .totals

    Exit code 3 when something is wrong; `meshray doctor` finds the cause.
    """
    if not watch:
        return _status(app, wide)
    try:
        while True:
            _redraw(app, _status(app, wide))
            time.sleep(_WATCH_S)
    except (KeyboardInterrupt, InterruptedByUser):
        return 0


def _status(app: App, wide: bool) -> StatusResult:
    answer = app.control().request_json(GetStatus())
    return StatusResult(convert(answer, Status), wide, received=answer)


def _redraw(app: App, result: StatusResult) -> None:
    if app.stdout.isatty() and not app.as_json:
        click.clear()
    output.show(app, replace(result, clock=time.strftime("%H:%M:%S")))
