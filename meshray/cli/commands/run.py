"""`meshray run` and `meshray env`: drivers that find the Ray cluster by themselves."""

from __future__ import annotations

import os
import shutil

import click

from meshray.cli.app import App
from meshray.cli.options import json_option
from meshray.cli.results import EnvResult, Result
from meshray.cli.tables import child
from meshray.errors import UsageError


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", metavar="[--] CMD...", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_obj
def run_command(app: App, command: tuple[str, ...]) -> None:
    """Run a command that finds the Ray cluster by itself.

    \b
    Examples:
      meshray run -- python job.py      with ray.init("auto")
      meshray run -- ray status
      meshray run -- ray job submit --working-dir . -- python job.py

    The command replaces meshray: its output and its exit code are its own.
    """
    environ = {**app.environ, **_environment(app)}
    program = shutil.which(command[0], path=environ.get("PATH", os.defpath))
    if program is None:
        raise UsageError("no_program", f"there is no program {command[0]!r} on PATH", hint="meshray run -- CMD")
    app.stdout.flush()
    app.stderr.flush()
    os.execve(program, command, environ)  # noqa: S606 - replacing this process is what `run` is for


@click.command("env")
@json_option
@click.pass_obj
def env_command(app: App) -> Result:
    """Print the environment of `meshray run` as shell exports.

    \b
    Example:
      eval "$(meshray env)"
    """
    return EnvResult(_environment(app))


def _environment(app: App) -> dict[str, str]:
    return {name: str(value) for name, value in child(app.control().ask("env"), "env").items()}
