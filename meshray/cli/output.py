"""Show results and errors: to users as text, to scripts in the envelope. Commands never print."""

from __future__ import annotations

from typing import Any

from meshray.cli import envelope
from meshray.cli.app import App
from meshray.cli.result import Result
from meshray.cli.tables import plain
from meshray.errors import MeshrayError
from meshray.model.printable import escaped


def show(app: App, result: Result[Any]) -> None:
    """Write the answer to stdout."""
    if app.as_json:
        shown = envelope.dumps(envelope.answer(result.to_json()))
    else:
        has_colours = app.stdout.isatty() and not app.environ.get("NO_COLOR")
        shown = result.harmless().text(coloured if has_colours else plain)
    if shown:
        app.stdout.write(shown if shown.endswith("\n") else shown + "\n")
    app.stdout.flush()


def show_error(app: App, error: MeshrayError) -> None:
    """Write ``error:`` and ``hint:`` to stderr, and for a script the envelope to stdout."""
    app.stderr.write(f"error: {escaped(_one_line(error.message))}\n")
    if error.hint:
        app.stderr.write(f"hint: {escaped(_one_line(error.hint))}\n")
    app.stderr.flush()
    if app.as_json:
        app.stdout.write(envelope.dumps(envelope.failure(error)) + "\n")
        app.stdout.flush()


def coloured(word: str, colour: str) -> str:
    """Return the word in this colour for a terminal."""
    import click

    return click.style(word, fg=colour)


def _one_line(value: str) -> str:
    return " ".join(value.split())
