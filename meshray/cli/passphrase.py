"""The passphrase of a backup: MESHRAY_PASSPHRASE, or what the user types on a terminal.

>>> passphrase(app, confirm=True)          # asks twice on a terminal
"""

from __future__ import annotations

from meshray.cli.app import App
from meshray.cli.variables import PASSPHRASE
from meshray.errors import UsageError


def passphrase(app: App, *, confirm: bool) -> str:
    """Return the passphrase.

    Args:
        confirm: ask twice, because a mistyped passphrase would lock the file for good.

    Raises:
        UsageError: it is empty, or there is neither the variable nor a terminal.
    """
    given = app.environ.get(PASSPHRASE)
    if given is None:
        if not app.stdin.isatty() or not app.stderr.isatty():
            raise UsageError(
                "passphrase_missing",
                f"{PASSPHRASE} is not set, and there is no terminal on which to ask for the passphrase",
                hint=f"read -rs {PASSPHRASE}; export {PASSPHRASE}; sudo --preserve-env={PASSPHRASE} meshray …",
            )
        import click

        given = str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, default="", err=True))
    if not given:
        raise UsageError("passphrase_empty", "the passphrase is empty", hint="choose at least five random words")
    return given
