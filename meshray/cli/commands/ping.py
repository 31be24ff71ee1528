"""`meshray ping`: round trips to one node over the overlay."""

from __future__ import annotations

from dataclasses import dataclass

import click

from meshray.cli.app import App
from meshray.cli.complete import node_names
from meshray.cli.options import json_option
from meshray.cli.result import UNHEALTHY, Result
from meshray.cli.tables import Paint, plain
from meshray.protocol.answers import PingAnswer
from meshray.protocol.control import Echo, OtherPath, Ping
from meshray.protocol.status import PathStatus

#: Longer than the agent's timeout for one echo.
_SILENCE_S = 10.0


@dataclass(frozen=True)
class PingResult(Result[PingAnswer]):
    """``ping``."""

    @property
    def exit_code(self) -> int:
        """3 if no answer came."""
        return 0 if self.answer.received else UNHEALTHY

    def text(self, paint: Paint = plain) -> str:
        """Return the round trips and the path."""
        answer = self.answer
        times = sorted(rtt for rtt in answer.rtts_ms if rtt is not None)
        line = f"{answer.node}: {answer.received} of {answer.sent} answered"
        if times:
            median = times[len(times) // 2]
            line += f", round trip {times[0]:.1f} / {median:.1f} / {times[-1]:.1f} ms (least / median / most)"
        elif answer.sent:
            line += "; meshray doctor finds the cause"
        return "\n".join([line, f"path: {_path_text(answer.path)}", *map(_other_path_text, answer.others)])


@click.command("ping")
@click.argument("node", shell_complete=node_names)
@click.option("-c", "--count", type=click.IntRange(1, 1000), default=4, show_default=True, help="How many probes.")
@json_option
@click.pass_obj
def ping_command(app: App, node: str, count: int) -> PingResult:
    """Measure the path to one node over the overlay.

    \b
    Example:
      meshray ping gpu-2

    NODE is a name or an overlay address. Exit code 3 when nothing comes back.
    """
    rtts: list[float | None] = []

    def show(echo: Echo) -> None:
        rtts.append(echo.rtt_ms)
        app.note(f"{node} {echo.seq}: " + (f"{echo.rtt_ms:.1f} ms" if echo.rtt_ms is not None else "no answer"))

    done = app.control().watch(Ping(node, count), show, timeout_s=_SILENCE_S)
    received = sum(rtt is not None for rtt in rtts)
    return PingResult(PingAnswer(node, len(rtts), received, tuple(rtts), done.path, done.others))


def _other_path_text(path: OtherPath) -> str:
    """Return the text of a path that packets could take, but do not."""
    line = f"not in use: {path.kind}"
    if path.to:
        answer = f"{path.rtt_ms:.1f} ms to there" if path.rtt_ms is not None else "which does not answer"
        line += f" by {path.to}, {answer}"
    return f"{line}: {path.reason}" if path.reason else line


def _path_text(path: PathStatus) -> str:
    """Return one path as a line."""
    endpoint = f" to {path.endpoint}" if path.endpoint else ""
    mtu = f", mtu {path.mtu}" if path.mtu is not None else ""
    handshake = f", handshake {path.handshake_age_s:.0f} s ago" if path.handshake_age_s is not None else ""
    return _path_kind(path) + endpoint + mtu + handshake


def _path_kind(path: PathStatus) -> str:
    return f"{path.kind}/{path.transport}" if path.transport else str(path.kind)
