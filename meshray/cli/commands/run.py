"""`meshray run`: run drivers that find the Ray cluster."""

from __future__ import annotations

import os
import shutil

import click

from meshray.cli.app import App
from meshray.cli.driver import Driver
from meshray.errors import UsageError
from meshray.installation.programs import folders
from meshray.linux.user import User
from meshray.runtime.selection import agent_runtime


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", metavar="[--] CMD...", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_obj
def run_command(app: App, command: tuple[str, ...]) -> None:
    """Run a command that finds the Ray cluster automatically.

    \b
    Examples:
      meshray run -- python job.py      with ray.init("auto")
      meshray run -- ray status
      meshray run -- ray job submit --working-dir . -- python job.py

    The command replaces meshray: its output and its exit code are its own. Ray's own environment is active for it,
    unless another one with a Ray is active already. With sudo it runs as the user who runs Ray.
    """
    driver = Driver.of(app)
    environ = driver.apply(app.environ)
    environ["PATH"] = os.pathsep.join([environ["PATH"], *map(str, reversed(folders()))])
    program = shutil.which(command[0], path=environ["PATH"])
    if program is None:
        raise UsageError("no_program", f"there is no program {command[0]!r} on PATH", hint="meshray run -- CMD")
    app.stdout.flush()
    app.stderr.flush()
    if app.euid == 0 and driver.uid != 0:
        environ.update(_become(User.by_uid(driver.uid)))
    direct = [program, *command[1:]]
    words = agent_runtime(app.home, app.environ).inside(direct)
    # A command that enters no namespace keeps the name by which the user called it.
    os.execve(words[0], command if words == direct else words, environ)  # noqa: S606 - replacing this process is what `run` is for


def _become(user: User) -> dict[str, str]:
    """Switch to the user, and return the variables for that.

    A driver of root creates folders in Ray's session that the user's workers cannot write, and the workers end at once.
    So no program runs as root on a node whose Ray does not.
    """
    user.become()
    return {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name}
