"""`meshray logs`: the logs of this node's parts."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from pathlib import Path

import click

from meshray.cli.app import App
from meshray.cli.file_result import FileResult
from meshray.cli.options import json_option
from meshray.errors import MeshrayError
from meshray.linux.trusted_files import find_program
from meshray.model.printable import escaped_lines
from meshray.protocol.answers import FileText

PARTS = ("agent", "coordinator", "engine", "ray", "cli")


@click.command("logs")
# Releases of click differ in the brackets around an optional choice.
@click.argument("part", type=click.Choice(PARTS), default="agent", metavar=f"[{'|'.join(PARTS)}]")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="How many lines to show, from the end.",
)
@click.option("-f", "--follow", is_flag=True, help="Keep showing new lines until Ctrl-C.")
@json_option
@click.pass_obj
def logs_command(app: App, part: str, lines: int, follow: bool) -> FileResult | int:
    """Show the logs of agent, coordinator, engine and Ray.

    \b
    Examples:
      sudo meshray logs
      sudo meshray logs ray -f

    After a failed init or join, it shows the logs of that attempt.
    """
    path = _path(app, part)
    if follow:
        tail = find_program("tail", app.environ)
        if tail is None:
            raise MeshrayError(
                "no_tail", "--follow needs the program `tail`, which is not installed", hint=f"meshray logs {part}"
            )
        return _follow(app, [str(tail), "-n", str(lines), "-F", str(path)])
    with path.open(errors="replace") as file:
        return FileResult(FileText(part, "".join(deque(file, maxlen=lines))))


def _follow(app: App, command: list[str]) -> int:
    """Show the output of tail until it ends or Ctrl-C; return its exit code.

    Ray's jobs and other nodes write into logs, so their text is escaped for the terminal.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as tail:
        try:
            for line in tail.stdout or ():
                app.stdout.write(escaped_lines(line))
                app.stdout.flush()
            tail.wait()
        finally:
            tail.terminate()
    return tail.returncode


def _path(app: App, part: str) -> Path:
    from meshray.node.state_folder import failed_logs

    home = app.home
    for folder in (home.logs, failed_logs(home)):
        path = folder / f"{part}.log"
        if path.exists():
            return path
    if not os.access(home.state, os.X_OK) and home.state.exists():
        raise PermissionError(13, "Permission denied", str(home.state))
    raise MeshrayError("no_log", f"{part} has written no log on this machine", hint="meshray status")
