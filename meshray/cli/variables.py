"""Options that environment variables can set as well: MESHRAY_INIT_… and MESHRAY_JOIN_…, and the token's variables.

$ MESHRAY_JOIN_LABEL='zone=lab disk=ssd' MESHRAY_JOIN_NO_RAY=1 MESHRAY_TOKEN_FILE=/run/secrets/token meshray join

The command line takes precedence over a variable. An empty variable is an error, because it was set on purpose.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from functools import partial
from typing import Any

import click
from click.core import ParameterSource

from meshray.errors import UsageError

TOKEN, TOKEN_FILE, PASSPHRASE = "MESHRAY_TOKEN", "MESHRAY_TOKEN_FILE", "MESHRAY_PASSPHRASE"
#: Variables for one call of a command, and not for processes that it starts. Values may be secrets.
_FOR_ONE_CALL = re.compile(r"MESHRAY_(TOKEN|TOKEN_FILE|PASSPHRASE|(INIT|JOIN)_\w+)")


class VariableOption(click.Option):
    """An option that has a variable if its command is one of `TakesVariables`."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the variable's value; None if it is not set.

        Raises:
            click.BadParameter: the variable is empty.
        """
        if not isinstance(self.envvar, str) or ctx.resilient_parsing:
            return None
        value = environment(ctx).get(self.envvar)
        if value is not None and not value.strip():
            raise click.BadParameter("the variable is empty: unset it, or give it a value.", ctx, self)
        return value

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """Return the variable's value; for an option that may be repeated, its words, quoted as in a shell.

        Raises:
            click.BadParameter: a quotation mark is not closed.
        """
        value = self.resolve_envvar_value(ctx)
        if value is None or not self.multiple:
            return value
        try:
            return tuple(shlex.split(value))
        except ValueError:
            raise click.BadParameter("a quotation mark is not closed.", ctx, self) from None

    def words(self, ctx: click.Context) -> list[str]:
        """Return the values by which an error may mention this option: not those of a flag, nor single characters."""
        value = None if self.is_flag else self.value_from_envvar(ctx)
        return [word for word in (value if isinstance(value, tuple) else (value,)) if word and len(word) > 1]


option = partial(click.option, cls=VariableOption)


class TakesVariables(click.Command):
    """A command whose every `VariableOption` has the variable MESHRAY_<COMMAND>_<OPTION>."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        for given in self._options():
            longest = max(given.opts, key=len)
            given.envvar = self._prefix() + longest.lstrip("-").replace("-", "_").upper()
            given.show_envvar = True

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. An error names the variables from which the refused values came."""
        self._warn_of_unknown(ctx)
        try:
            return super().invoke(ctx)
        except UsageError as error:
            if names := self._named(ctx, error):
                error.message += f" (from the environment: {', '.join(names)})"
            raise

    def _prefix(self) -> str:
        return f"MESHRAY_{(self.name or '').upper()}_"

    def _options(self) -> list[VariableOption]:
        return [given for given in self.params if isinstance(given, VariableOption)]

    def _named(self, ctx: click.Context, error: UsageError) -> list[str]:
        """Return the variables that an error concerns: by their options, or by their values."""
        options = set(re.findall(r"--[a-z-]+", f"{error.message} {error.hint}"))
        return [
            str(given.envvar)
            for given in self._options()
            if ctx.get_parameter_source(given.name or "") is ParameterSource.ENVIRONMENT
            and (options.intersection(given.opts) or any(word in error.message for word in given.words(ctx)))
        ]

    def _warn_of_unknown(self, ctx: click.Context) -> None:
        known = [str(given.envvar) for given in self._options()]
        for name in sorted(environment(ctx)):
            if name.startswith(self._prefix()) and name not in known:
                import difflib

                suggestion = next(iter(difflib.get_close_matches(name, known, 1)), "")
                ctx.obj.warn(f"{name} belongs to no option" + (f"; did you mean {suggestion}?" if suggestion else ""))


def environment(ctx: click.Context) -> Mapping[str, str]:
    """Return the environment of this call; if no command is running (help, references), that of the process."""
    found: Mapping[str, str] = getattr(ctx.obj, "environ", os.environ)
    return found


def names_for(command: str, environ: Mapping[str, str]) -> list[str]:
    """Return the variables that are set for this command, which sudo must keep. Pure."""
    names = {"init": "MESHRAY_INIT_", "join": "MESHRAY_JOIN_"}
    prefix = names.get(command)
    secrets = {"join": (TOKEN, TOKEN_FILE), "backup": (PASSPHRASE,), "restore": (PASSPHRASE,)}.get(command, ())
    return sorted(name for name in environ if name in secrets or (prefix is not None and name.startswith(prefix)))


def without_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for processes that outlive this call: a token in it would stay readable. Pure.

    >>> without_variables({"MESHRAY_TOKEN": "secret", "MESHRAY_HOME": "/srv/mesh"})
    {'MESHRAY_HOME': '/srv/mesh'}
    """
    return {name: value for name, value in environ.items() if not _FOR_ONE_CALL.fullmatch(name)}
