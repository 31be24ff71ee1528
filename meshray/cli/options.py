"""Options and arguments that several commands share.

@click.command("status", cls=Command)
@json_option
@click.pass_obj
def status_command(app: App) -> Result: ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meshray.cli.variables import TOKEN, TOKEN_FILE, TakesVariables, option
from meshray.defaults import LONGEST_DURATION_S
from meshray.errors import MeshrayError, UsageError

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.model.token import Token

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
#: Shown for a group whose command is optional. Releases of click differ in the brackets.
SUBCOMMAND = "[COMMAND] [ARGS]..."
#: The maximum length of a token.
_MAX_TOKEN_BYTES = 64 * 1024


def json_option(function: F) -> F:
    """Add ``--json``. Its value is not passed on: `main` has looked for it before click did, for the sake of errors."""
    return click.option("--json", "as_json", is_flag=True, expose_value=False, help="Answer as one JSON object.")(
        function
    )


def yes_option(function: F) -> F:
    """Add ``--yes``."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(function)


def node_options(function: F) -> F:
    """Add the options that `init` and `join` share."""
    for decorator in (
        option("--block", is_flag=True, help="Stay in the foreground until SIGTERM, then go down."),
        option(
            "--unguarded",
            is_flag=True,
            help="Start Ray even where its ports cannot be closed to this machine's other networks.",
        ),
        option(
            "--open",
            "open_to_members",
            multiple=True,
            metavar="PORT|all",
            help="Other ports that the mesh's members can reach here, regardless of this machine's firewall. "
            "May be repeated.",
        ),
        option(
            "--expose",
            multiple=True,
            type=click.IntRange(1, 65535),
            metavar="PORT",
            help="A port of Ray that this node's other networks may reach, too; only Ray's token protects it. May be "
            "repeated.",
        ),
        option("--no-ray", is_flag=True, help="Only the overlay; start no Ray."),
        option(
            "--ray-user",
            metavar="USER",
            help="With --ray external: the user who runs Ray, a name or a uid; default: the user who calls sudo.",
        ),
        option(
            "--ray",
            metavar="PATH|external",
            help="The Ray to run: a program or a virtual environment. external: another program starts Ray, with what "
            "the file env in MESHRAY_RUN contains; meshray watches it, and closes its ports to all but the overlay.",
        ),
        option(
            "--trust-user-environment",
            is_flag=True,
            help="Run meshray as root from an environment that other users can change; status and doctor show it.",
        ),
        option("--name", metavar="NAME", help="This node's name; default: the host name."),
    ):
        function = decorator(function)
    return function


def parse_exposed(ports: Sequence[int], *, rootless: bool) -> tuple[int, ...]:
    """Return the values of ``--expose`` without duplicates. Raises UsageError if no other network leads to them."""
    if ports and rootless:
        raise UsageError(
            "expose_rootless",
            "--expose opens ports on this machine's networks, and without root Ray is in a network of its own",
            hint="run it with root, or use: meshray forward PORT",
        )
    return tuple(dict.fromkeys(ports))


def rootless_option(function: F) -> F:
    """Add ``--rootless``."""
    return option(
        "--rootless",
        is_flag=True,
        help="Run without root, in separate user and network namespaces (default for non-root users).",
    )(function)


def lock_option(text: str) -> Callable[[F], F]:
    """Add ``--lock``, with this help."""
    return option("--lock", metavar="FILE", help=text)


def endpoint_option(function: F) -> F:
    """Add ``--endpoint``."""
    return option(
        "--endpoint",
        multiple=True,
        metavar="HOST:PORT",
        help="Where other nodes reach this node's WireGuard (UDP), for example behind a port forward. May be repeated.",
    )(function)


class _Verbs(click.Group):
    """A group that suggests the intended verb for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from meshray.cli.mistyped import unknown

            raise click.UsageError(unknown(args[0], self.list_commands(ctx), str(self.name)), ctx)
        return super().resolve_command(ctx, args)


def group(name: str) -> Callable[[Callable[..., None]], click.Group]:
    """Return a decorator for a noun whose commands are verbs; alone (`meshray token`) it prints its help."""

    def make(function: Callable[..., None]) -> click.Group:
        def alone() -> None:
            context = click.get_current_context()
            if context.invoked_subcommand is None:
                click.echo(context.get_help())

        return _Verbs(
            name, callback=alone, help=function.__doc__, invoke_without_command=True, subcommand_metavar=SUBCOMMAND
        )

    return make


class PassesOnToRay(click.Command):
    """A command with options of `ray start` after ``--``; they arrive as ``ctx.meta["ray_args"]``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remove Ray's part before click parses the rest."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["ray_args"] = tuple(args[end + 1 :])
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show Ray's part in the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- RAY START ARGS]"]


class NodeCommand(TakesVariables, PassesOnToRay):
    """`init` and `join`: options from the command line or from variables, and Ray's after ``--``."""


def ray_args() -> tuple[str, ...]:
    """Return the arguments after ``--``."""
    found: tuple[str, ...] = click.get_current_context().meta["ray_args"]
    return found


def require_no_ray_args(no_ray: bool, ray: str | None) -> None:
    """Raise UsageError if there are arguments for Ray although it should not run."""
    if no_ray and (ray is not None or ray_args()):
        subject = "--ray has" if ray is not None else "arguments after -- have"
        raise UsageError("no_ray_with_ray", f"{subject} no effect with --no-ray", hint="leave one of them out")


def parse_labels(items: Sequence[str]) -> dict[str, str]:
    """Parse ``("zone=lab",)`` into ``{"zone": "lab"}``. Raises UsageError."""
    labels = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UsageError("bad_label", f"{item[:80]!r} is not a label KEY=VALUE", hint="--label zone=lab-2")
        labels[key] = value
    return labels


def parse_duration(text: str) -> int:
    """Return the seconds of ``90s``, ``30m``, ``24h``, ``7d``; ``0`` and ``never`` are 0. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    if found and int(found.group(1)) * _UNITS[found.group(2)] <= LONGEST_DURATION_S:
        return int(found.group(1)) * _UNITS[found.group(2)]
    if text.strip() in ("0", "never"):
        return 0
    raise UsageError("bad_duration", f"{text[:40]!r} is not a duration", hint="for example 30m, 24h, 7d, or never")


def read_token(words: Sequence[str], app: App) -> Token:
    """Return the token: from the argument, for ``-`` from stdin, for ``@FILE`` from the file.

    Without an argument it comes from MESHRAY_TOKEN, else from the file in MESHRAY_TOKEN_FILE.

    Args:
        words: the typed or pasted arguments: also a token in pieces, or the whole command around one.

    Raises:
        UsageError: there is no token, the file cannot be read, or it contains no token.
        RefusedError: it is damaged.
    """
    from meshray.model.token import Token

    text = " ".join(words)
    if words:
        return Token.parse(_typed(text, app))
    variable = next((name for name in (TOKEN, TOKEN_FILE) if name in app.environ), "")
    if not variable:
        raise UsageError(
            "usage", "Missing argument 'TOKEN|-|@FILE'.", hint=f"meshray join TOKEN, or {TOKEN_FILE}=FILE meshray join"
        )
    value = app.environ[variable]
    try:
        return Token.parse(_not_empty(value) if variable == TOKEN else _token_in(value, app))
    except MeshrayError as error:
        error.message += f" (from the environment: {variable})"
        raise


def _typed(text: str, app: App) -> str:
    if text == "-":
        return _not_empty(app.stdin.read(_MAX_TOKEN_BYTES))
    return _token_in(text[1:], app) if text.startswith("@") else text


def _token_in(file: str, app: App) -> str:
    from meshray.cli.user_file import read_as_user

    try:
        return _not_empty(read_as_user(file, app.environ, _MAX_TOKEN_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            "token_file", f"the token file {file!r} cannot be read: {reason}", hint="meshray join @FILE"
        ) from None


def _not_empty(text: str) -> str:
    if not text.strip():
        raise UsageError(
            "not_a_token",
            "there is no token in the input",
            hint="meshray join -, with the token on standard input",
        )
    return text
