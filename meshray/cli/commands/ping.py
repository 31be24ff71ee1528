"""`meshray ping`: round trips to one node over the overlay."""

from __future__ import annotations

import click

from meshray.cli.app import App
from meshray.cli.complete import node_names
from meshray.cli.options import json_option
from meshray.cli.results import PingResult, Result
from meshray.cli.tables import child

#: Longer than the agent waits for one echo.
_SILENCE_S = 10.0


@click.command("ping")
@click.argument("node", shell_complete=node_names)
@click.option("-c", "--count", type=click.IntRange(1, 1000), default=4, show_default=True, help="How many probes.")
@json_option
@click.pass_obj
def ping_command(app: App, node: str, count: int) -> Result:
    """Measure the way to one node over the overlay.

    \b
    Example:
      meshray ping gpu-2

    NODE is a name or an overlay address. Exit code 3 when nothing comes back.
    """
    rtts: list[float | None] = []
    last: dict[str, object] = {}
    for event in app.control().stream("ping", timeout_s=_SILENCE_S, node=node, count=count):
        if "seq" not in event:
            last = dict(event)
            continue
        rtt = event.get("rtt_ms")
        rtts.append(float(rtt) if isinstance(rtt, (int, float)) else None)
        app.note(f"{node} {event.get('seq')}: " + (f"{rtts[-1]:.1f} ms" if rtts[-1] is not None else "no answer"))
    others = last.get("others")
    return PingResult(node, tuple(rtts), child(last, "path"), tuple(others) if isinstance(others, list) else ())
