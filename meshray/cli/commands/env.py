"""`meshray env`: the environment of drivers, and the packages that nodes install to match the head."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from meshray.cli.app import App
from meshray.cli.driver import Driver
from meshray.cli.options import SUBCOMMAND, json_option
from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.errors import MeshrayError, UsageError
from meshray.model.amounts import counted
from meshray.protocol.answers import Environment, EnvLock
from meshray.protocol.api import LONGEST_REQUIREMENTS

#: A larger file is not a requirements file.
_LONGEST_FILE = 1024 * 1024


@dataclass(frozen=True)
class EnvResult(Result[Environment]):
    """``env``.

    Attributes:
        leads: the folder of the programs comes first on PATH.
    """

    leads: bool = False

    def text(self, paint: Paint = plain) -> str:
        """Return the shell's exports."""
        lines = [f"export {name}={_quoted(value)}" for name, value in self.answer.env.items()]
        if self.answer.programs:
            ours = _quoted(self.answer.programs)
            lines.append(f'export PATH={ours}:"$PATH"' if self.leads else f'export PATH="$PATH":{ours}')
        return "\n".join(lines)

    def harmless(self) -> EnvResult:
        """Return the result unchanged: its text is quoted for the shell."""
        return self


@dataclass(frozen=True)
class LockResult(Result[EnvLock]):
    """``env lock``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the number of packages."""
        count = len(self.answer.requirements)
        head = f" with Ray {self.answer.ray} on Python {self.answer.python}" if self.answer.ray else ""
        them = "it" if count == 1 else "them"
        return f"recorded {counted(count, 'requirement')}: `meshray join --env match` installs {them}{head}"


@click.group("env", invoke_without_command=True, subcommand_metavar=SUBCOMMAND)
@json_option
@click.pass_context
def env_command(ctx: click.Context) -> EnvResult | None:
    """Print the environment of `meshray run` as shell exports.

    \b
    Example:
      eval "$(meshray env)"; ray status
    """
    if ctx.invoked_subcommand is not None:
        return None
    app: App = ctx.obj
    driver = Driver.of(app)
    leads = driver.leads(app.environ)
    variables = {**driver.variables, **(driver.activation if leads else {})}
    return EnvResult(Environment(variables, driver.programs), leads)


@env_command.command("lock")
@click.option("--from", "file", metavar="FILE", help="A requirements file; - reads it from standard input.")
@json_option
@click.pass_obj
def lock_command(app: App, file: str | None) -> LockResult:
    """Record the packages of the head's environment besides Ray.

    \b
    Examples:
      sudo meshray env lock                            all packages installed beside this node's Ray
      sudo meshray env lock --from requirements.txt
      sudo meshray env lock --from /dev/null           no packages besides Ray

    `meshray join --env match` installs them on the nodes that join from now on; other nodes install them with `meshray
    down` and `meshray up`. Ray itself need not be named. Run this command on the node that runs the coordinator.
    """
    from meshray.environment.requirements import parse_requirements

    app.require_root()
    requirements = parse_requirements(_freeze(app) if file is None else _read(app, file))
    if file is not None and requirements.refused:
        raise UsageError(
            "requirement_refused",
            f"no other machine could install {'; '.join(requirements.refused[:5])}",
            hint="name packages of an index, as in numpy==2.1.0; options, paths and checkouts cannot be recorded",
        )
    for line in requirements.refused:
        app.warn(f"left out, since no other machine could install it: {line}")
    if len(requirements.text) > LONGEST_REQUIREMENTS:
        raise UsageError(
            "requirements_too_long",
            f"the requirements have {len(requirements.text)} characters, and {LONGEST_REQUIREMENTS} can be recorded",
            hint="leave out hashes, or packages that others require anyway",
        )
    answer = app.api("PUT", "/v1/environment", {"requirements": requirements.text})
    versions = str(answer.get("ray", "")), str(answer.get("python", ""))
    return LockResult(EnvLock(*versions, requirements.lines, requirements.refused))


def _freeze(app: App) -> str:
    from meshray.environment.freeze import freeze
    from meshray.linux.user import User
    from meshray.node.enrolment import Enrolment
    from meshray.raynode.versions import inspect

    enrolment = Enrolment.load(app.home)
    if not enrolment.ray:
        raise MeshrayError(
            "no_ray",
            "this node runs no Ray whose environment could be recorded",
            hint="meshray env lock --from FILE",
        )
    user = User.by_uid(enrolment.user_uid)
    return freeze(inspect(Path(enrolment.ray), user).python, user, app.environ)


def _read(app: App, file: str) -> str:
    if file == "-":
        return app.stdin.read(_LONGEST_FILE)
    try:
        with Path(file).open() as opened:
            return opened.read(_LONGEST_FILE)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            "no_requirements", f"{file} cannot be read: {reason}", hint="meshray env lock --from FILE"
        ) from None


def _quoted(value: str) -> str:
    quoted = shlex.quote(value)
    return quoted if quoted.startswith("'") else f"'{quoted}'"
