"""Options and arguments that several commands share.

@click.command("status", cls=Command)
@json_option
@click.pass_obj
def status_command(app: App) -> Result: ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from meshray.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
#: Ten years; whoever needs longer means never.
_LONGEST_S = 10 * 365 * 86400
#: No token is longer.
_MAX_TOKEN_BYTES = 64 * 1024


def json_option(function: F) -> F:
    """``--json``. Its value is not passed on: `main` has looked for it before click did, for errors' sake."""
    return click.option("--json", "as_json", is_flag=True, expose_value=False, help="Answer as one JSON object.")(
        function
    )


def yes_option(function: F) -> F:
    """``--yes``."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(function)


def node_options(function: F) -> F:
    """What `init` and `join` have in common."""
    for option in (
        click.option("--block", is_flag=True, help="Stay in the foreground until SIGTERM, then go down."),
        click.option(
            "--unguarded",
            is_flag=True,
            help="Start Ray also where its ports cannot be closed to this machine's other networks.",
        ),
        click.option(
            "--open",
            "open_to_members",
            multiple=True,
            metavar="PORT|all",
            help="What else the mesh's members reach here, whatever this machine's firewall says. May be repeated.",
        ),
        click.option("--no-ray", is_flag=True, help="Only the overlay; start no Ray."),
        click.option("--ray", metavar="PATH", help="The Ray to run: a program or a virtual environment."),
        click.option(
            "--trust-user-environment",
            is_flag=True,
            help="Run meshray as root from an environment that others than root can change; status and doctor show it.",
        ),
        click.option("--name", metavar="NAME", help="This node's name; default: the host name."),
    ):
        function = option(function)
    return function


def rootless_option(function: F) -> F:
    """``--rootless``."""
    return click.option(
        "--rootless",
        is_flag=True,
        help="In namespaces of its own, as an ordinary user; so by itself where you are not root.",
    )(function)


def lock_option(text: str) -> Callable[[F], F]:
    """``--lock``, with this help."""
    return click.option("--lock", metavar="FILE", help=text)


def endpoint_option(function: F) -> F:
    """``--endpoint``."""
    return click.option(
        "--endpoint",
        multiple=True,
        metavar="HOST:PORT",
        help="Where the others reach this node's WireGuard (UDP), for example behind a port forward. May be repeated.",
    )(function)


def group(name: str) -> Callable[[Callable[..., None]], click.Group]:
    """A noun whose commands are verbs; alone (`meshray token`) it prints its help."""

    def make(function: Callable[..., None]) -> click.Group:
        def alone() -> None:
            context = click.get_current_context()
            if context.invoked_subcommand is None:
                click.echo(context.get_help())

        return click.Group(name, callback=alone, help=function.__doc__, invoke_without_command=True)

    return make


class PassesOnToRay(click.Command):
    """A command behind whose ``--`` stand options of `ray start`; they arrive as ``ctx.meta["ray_args"]``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes Ray's part away before click looks."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["ray_args"] = tuple(args[end + 1 :])
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Shows that part in the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- RAY START ARGS]"]


def ray_args() -> tuple[str, ...]:
    """What stood behind ``--``."""
    found: tuple[str, ...] = click.get_current_context().meta["ray_args"]
    return found


def require_no_words_to_ray(no_ray: bool, ray: str | None) -> None:
    """Raises UsageError where Ray is not to run and something is said to it all the same."""
    if no_ray and (ray is not None or ray_args()):
        said = "--ray" if ray is not None else "options behind --"
        raise UsageError(
            "no_ray_with_ray", f"--no-ray runs no Ray here, so {said} would mean nothing", hint="leave one of them out"
        )


def parse_labels(items: Sequence[str]) -> dict[str, str]:
    """``("zone=lab",)`` → ``{"zone": "lab"}``. Raises UsageError."""
    labels = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UsageError("bad_label", f"{item[:80]!r} is no label", hint="--label zone=lab-2")
        labels[key] = value
    return labels


def parse_duration(text: str) -> int:
    """Seconds of ``90s``, ``30m``, ``24h``, ``7d``; ``0`` and ``never`` are 0. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    if found and int(found.group(1)) * _UNITS[found.group(2)] <= _LONGEST_S:
        return int(found.group(1)) * _UNITS[found.group(2)]
    if text.strip() in ("0", "never"):
        return 0
    raise UsageError("bad_duration", f"{text[:40]!r} is no duration", hint="for example 30m, 24h, 7d, or never")


def read_token(words: Sequence[str], stdin: TextIO) -> str:
    """The token itself: of ``-`` from stdin, of ``@FILE`` from the file.

    Args:
        words: what was typed or pasted: also a token in pieces, and the whole command around one.

    Raises:
        UsageError: the file cannot be read, or there is nothing in it.
    """
    text = " ".join(words)
    if text == "-":
        found = stdin.read(_MAX_TOKEN_BYTES)
    elif text.startswith("@"):
        try:
            # Behind @ a shell leaves ~ as it is.
            with Path(text[1:]).expanduser().open(errors="replace") as file:
                found = file.read(_MAX_TOKEN_BYTES)
        except OSError as error:
            raise UsageError(
                "token_file", f"the token file {text[1:]!r} cannot be read: {error.strerror}", hint="meshray join @FILE"
            ) from None
    else:
        return text
    if not found.strip():
        raise UsageError(
            "not_a_token",
            "there is no token in what was given",
            hint="meshray join -, with the token on standard input",
        )
    return found
