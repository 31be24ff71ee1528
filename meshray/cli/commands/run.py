"""`meshray run`: drivers that find the Ray cluster by themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from meshray.cli.app import App
from meshray.cli.tables import child
from meshray.cli.where import inside_command
from meshray.errors import MeshrayError, UsageError
from meshray.runtime.person import Person


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
    even where its virtual environment is not activated. Behind sudo it runs as the person as whom Ray runs.
    """
    answer = app.control().ask("env")
    environ = {**app.environ, **_variables(answer)}
    environ["PATH"] = os.pathsep.join([environ.get("PATH", os.defpath), *_ray_folders(app)])
    program = shutil.which(command[0], path=environ["PATH"])
    if program is None:
        raise UsageError("no_program", f"there is no program {command[0]!r} on PATH", hint="meshray run -- CMD")
    app.stdout.flush()
    app.stderr.flush()
    uid = answer.get("person_uid")
    if app.euid == 0 and isinstance(uid, int) and uid != 0:
        environ.update(_become(Person.by_uid(uid)))
    direct = [program, *command[1:]]
    words = inside_command(app, direct)
    # Where nothing is to be entered, it keeps the name by which it was called.
    os.execve(words[0], command if words == direct else words, environ)  # noqa: S606 - replacing this process is what `run` is for


def _become(person: Person) -> dict[str, str]:
    """Gives up root. A driver of root's makes folders in Ray's session in which the person's workers cannot write, and
    they end at once; so nobody's program runs as root on a node whose Ray does not."""
    person.become()
    return {"HOME": str(person.home), "USER": person.name, "LOGNAME": person.name}


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


def _variables(answer: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in child(answer, "env").items()}
