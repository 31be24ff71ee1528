"""The program: find the command, run it, show its result or its error. Only this module catches all exceptions.

    $ meshray status --json
    {"schema": 1, "mesh": "lab", …}

Only the module of the requested command is imported, so that ``--help`` and ``status`` start at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from meshray import __version__
from meshray.cli.app import App
from meshray.cli.command_registry import SECTIONS, find
from meshray.cli.program_name import pasteable
from meshray.errors import InterruptedByUser, MeshrayError, UnreachableError, UsageError
from meshray.linux.files import DISK_ERRORS
from meshray.model.printable import escaped_lines

if TYPE_CHECKING:
    from meshray.cli.result import Result


class Program(click.Group):
    """The root command, which imports a command's module on demand and lists commands by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every command, in the order of the help text."""
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name, imported on demand."""
        known = find(cmd_name)
        if known is None:
            return None
        module = importlib.import_module(f"meshray.cli.commands.{known.module}")
        command = getattr(module, cmd_name + "_command")
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown name, suggest the one that was meant."""
        if args[0] and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from meshray.cli.mistyped import unknown

            raise click.UsageError(unknown(args[0], self.list_commands(ctx)), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections without importing anything, with aligned columns."""
        width = max(map(len, self.list_commands(ctx)))
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), command.summary) for name, command in section.items()])


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """One real Ray cluster out of machines that cannot reach each other.

    \b
    Examples:
      sudo meshray init            on the head; prints the command for the others
      sudo meshray join TOKEN      on every other machine
      meshray status               every node, and the resources of the cluster
      meshray run -- python job.py ray.init("auto") finds the cluster

    Answers go to stdout, progress and warnings to stderr. Exit codes: 0 fine, 1 failed, 2 usage, 3 works but
    unhealthy, 4 token or identity refused, 5 agent or coordinator unreachable, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Never raises; shows a traceback only on request."""
    _open_closed_streams()
    app = app_for(sys.argv[1:] if arguments is None else arguments)
    _interrupt_on_signals()
    try:
        return run(app)
    except BrokenPipeError:  # The reader (`| head`) has ended.
        _give_up_stdout()
        return 1


def app_for(arguments: Sequence[str]) -> App:
    """Return the context of the command: these arguments, and this process's environment and streams."""
    # Arguments after `--`, and after `run`, belong to another program. They are parsed here and not by click, because
    # click's own errors must be JSON as well.
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return App(tuple(arguments), as_json="--json" in own and own[0] != "run")


def run(app: App) -> int:
    """Run the command that was typed; return its exit code."""
    from meshray.cli import output
    from meshray.cli.command_forwarding import forward
    from meshray.cli.result import Result

    try:
        code = forward(app)
        if code is not None:
            return code
        result = cli.main(list(app.arguments), prog_name="meshray", standalone_mode=False, obj=app)
        if isinstance(result, Result):
            _show(app, result)
            return result.exit_code
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as caught:
        error = as_error(caught, app)
        error.hint = pasteable(error.hint, app.environ) if error.hint else error.hint
        output.show_error(app, error)
        if app.environ.get("MESHRAY_DEBUG") == "1":
            import traceback

            app.stderr.write(escaped_lines(traceback.format_exc()))
        return error.exit_code


def _show(app: App, result: Result[Any]) -> None:
    from meshray.cli import output

    try:
        output.show(app, result)
    except BrokenPipeError:
        raise
    except OSError as error:
        _give_up_stdout()
        raise MeshrayError(
            "output", f"it is done, but the answer could not be written to standard output: {error.strerror}"
        ) from None


def _give_up_stdout() -> None:
    # Otherwise Python would report it again when it flushes stdout at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _open_closed_streams() -> None:
    """Open /dev/null for each stream that the user closed (``>&-``): the next file must not get its descriptor."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open as long as the process


def as_error(caught: BaseException, app: App) -> MeshrayError:
    """Return any exception as a MeshrayError: subject, cause, next step."""
    if isinstance(caught, MeshrayError):
        return _with_better_hint(caught, app)
    if isinstance(caught, (click.Abort, KeyboardInterrupt)):
        return InterruptedByUser("interrupted", "interrupted")
    if isinstance(caught, click.ClickException):
        return _from_click(caught)
    if isinstance(caught, OSError) and (caught.filename is not None or caught.errno in DISK_ERRORS):
        # Python does not report which file could not be written: it is on the state folder's disk.
        return _from_system(caught, app)
    return _unexpected(caught, app)


def _with_better_hint(error: MeshrayError, app: App) -> MeshrayError:
    """Improve the hint by the program's name, and by whether there is a node at all."""
    if error.code == "not_root" and app.euid != 0:
        error.hint = app.sudo_line()
    if error.code == "state_foreign":
        error.hint = app.line_with_another_home()
    if error.code == "agent_down" and not app.may_be_enrolled:
        return UnreachableError(
            "agent_down",
            "no agent runs here: this machine is not in a mesh",
            hint="meshray init, or meshray join TOKEN",
        )
    if error.code == "agent_down" and _was_removed(app):
        from meshray.client.coordinator import RemovedFromMesh

        return RemovedFromMesh()
    return error


def _was_removed(app: App) -> bool:
    from meshray.cli.membership_checks import find_enrolment

    try:
        enrolment = find_enrolment(app.home)
    except MeshrayError:
        return False  # This user may not read root's state, or it is damaged, which `meshray up` reports.
    return enrolment is not None and enrolment.taken_out


def _from_click(caught: click.ClickException) -> MeshrayError:
    message = " ".join(caught.format_message().split())
    if not isinstance(caught, click.UsageError):
        return MeshrayError("failed", message)
    return UsageError("usage", message, hint=f"{caught.ctx.command_path if caught.ctx else 'meshray'} --help")


def _from_system(caught: OSError, app: App) -> MeshrayError:
    if isinstance(caught, PermissionError) and app.euid != 0:
        return MeshrayError("not_root", f"not root: you may not access {caught.filename}", hint=app.sudo_line())
    hint = ""
    if caught.errno in DISK_ERRORS:
        hint = "make room there, or MESHRAY_HOME=FOLDER keeps the state elsewhere"
    return MeshrayError("system", f"{caught.filename or app.own_home.state}: {caught.strerror}", hint=hint)


def _unexpected(caught: BaseException, app: App) -> MeshrayError:
    cause = (str(caught).splitlines() or [""])[0]
    log = _log_traceback(caught, app)
    return MeshrayError(
        "unexpected",
        f"unexpected {type(caught).__name__}: {cause[:200]}" + (f" (details in {log})" if log else ""),
        hint="MESHRAY_DEBUG=1 shows where it came from; please report it",
    )


def _log_traceback(caught: BaseException, app: App) -> str:
    """Return the log's path; empty if none can be written (no state yet, or not ours)."""
    import time
    import traceback

    log = app.own_home.logs / "cli.log"
    try:
        if not app.own_home.state.is_dir():
            return ""
        log.parent.mkdir(mode=0o700, exist_ok=True)
        with log.open("a") as file:
            file.write(time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))
            file.writelines(traceback.format_exception(type(caught), caught, caught.__traceback__))
    except OSError:
        return ""
    return str(log)


def _interrupt_on_signals() -> None:
    """Let SIGTERM and a lost terminal end a command as Ctrl-C does, with a rollback.

    It raises KeyboardInterrupt and not a MeshrayError, because asyncio swallows every other exception that a signal
    handler raises inside a callback.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP on purpose.
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
