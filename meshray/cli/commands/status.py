"""`meshray status`: show every node with its path and its Ray, once or repeatedly."""

from __future__ import annotations

import time
from dataclasses import replace

import click

from meshray.cli import output
from meshray.cli.app import App
from meshray.cli.options import json_option
from meshray.cli.results import Result, StatusResult
from meshray.errors import InterruptedByUser

#: The status takes one request to Ray's head.
_WATCH_S = 2.0


@click.command("status")
@click.option(
    "--wide",
    is_flag=True,
    help="Also show loss, handshake, MTU, bytes and endpoint of each path, and the chosen ports of Ray.",
)
@click.option("--watch", is_flag=True, help="Refresh every two seconds, until Ctrl-C.")
@json_option
@click.pass_obj
def status_command(app: App, wide: bool, watch: bool) -> Result | int:
    """Show every node, its path and what the cluster offers.

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
    from meshray.protocol.codec import convert
    from meshray.protocol.control import GetStatus
    from meshray.protocol.status import Status

    answer = app.control().ask_for_json(GetStatus())
    return StatusResult(convert(answer, Status), answer, wide)


def _redraw(app: App, result: StatusResult) -> None:
    if app.stdout.isatty() and not app.as_json:
        click.clear()
    output.show(app, replace(result, clock=time.strftime("%H:%M:%S")))
