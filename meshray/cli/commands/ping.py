"""`meshray ping`: round trips to one node over the overlay."""

from __future__ import annotations

import click

from meshray.cli.app import App
from meshray.cli.complete import node_names
from meshray.cli.options import json_option
from meshray.cli.results import PingResult, Result

#: Longer than the agent's timeout for one echo.
_SILENCE_S = 10.0


@click.command("ping")
@click.argument("node", shell_complete=node_names)
@click.option("-c", "--count", type=click.IntRange(1, 1000), default=4, show_default=True, help="How many probes.")
@json_option
@click.pass_obj
def ping_command(app: App, node: str, count: int) -> Result:
    """Measure the path to one node over the overlay.

    \b
    Example:
      meshray ping gpu-2

    NODE is a name or an overlay address. Exit code 3 when nothing comes back.
    """
    from meshray.protocol.control import Echo, Ping

    rtts: list[float | None] = []

    def show(echo: Echo) -> None:
        rtts.append(echo.rtt_ms)
        app.note(f"{node} {echo.seq}: " + (f"{echo.rtt_ms:.1f} ms" if echo.rtt_ms is not None else "no answer"))

    done = app.control().watch(Ping(node, count), show, timeout_s=_SILENCE_S)
    return PingResult(node, tuple(rtts), done.path, done.others)
