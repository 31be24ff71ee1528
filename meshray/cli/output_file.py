"""The file that a command writes with ``-o``, instead of printing its text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshray.cli.file_result import FileResult
from meshray.errors import MeshrayError
from meshray.protocol.answers import FileText

if TYPE_CHECKING:
    from meshray.cli.app import App

output_option = click.option("-o", "--output", metavar="FILE", help="Write it to this file instead of standard output.")


def written(app: App, kind: str, text: str, output: str | None, following: str) -> FileResult:
    """Write the file if one is named, and return the text to print.

    Args:
        following: what to do with the file next; ``{}`` is its name.
    """
    if output is None:
        return FileResult(FileText(kind, text))
    try:
        Path(output).write_text(text)
    except OSError as error:
        raise MeshrayError(
            "file_closed", f"{output} cannot be written: {error.strerror}", hint="another file after -o"
        ) from None
    app.note(f"{output} is written; next: {following.format(output)}")
    return FileResult(FileText(kind, text if app.as_json else ""))
