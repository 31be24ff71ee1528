"""`meshray run` and `meshray env`: drivers that find the Ray cluster by themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

import click

from meshray.cli.app import App
from meshray.cli.options import json_option
from meshray.cli.results import EnvResult, Result
from meshray.cli.tables import child
from meshray.errors import MeshrayError, UsageError


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

    The command replaces meshray: its output and its exit code are its own. Programs of this node's Ray are found
    even where its virtual environment is not activated.
    """
    environ = {**app.environ, **_environment(app)}
    environ["PATH"] = os.pathsep.join([environ.get("PATH", os.defpath), *_ray_folders(app)])
    program = shutil.which(command[0], path=environ["PATH"])
    if program is None:
        raise UsageError("no_program", f"there is no program {command[0]!r} on PATH", hint="meshray run -- CMD")
    app.stdout.flush()
    app.stderr.flush()
    os.execve(program, command, environ)  # noqa: S606 - replacing this process is what `run` is for


def _ray_folders(app: App) -> list[str]:
    """Where `ray` and its Python lie, last on PATH: what the person has activated comes first."""
    from meshray.cli.enrolled import find_enrolment

    folders = [str(Path(sys.executable).parent)]
    # Only root may read who this node is; the folder beside meshray is the usual one.
    with contextlib.suppress(MeshrayError):
        enrolment = find_enrolment(app.home)
        if enrolment is not None and enrolment.ray:
            folders.insert(0, str(Path(enrolment.ray).parent))
    return folders


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
