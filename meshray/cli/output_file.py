"""The file that a command writes with ``-o``, instead of printing its text."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshray.cli.file_result import FileResult
from meshray.errors import MeshrayError, UsageError
from meshray.protocol.answers import FileText

if TYPE_CHECKING:
    from meshray.cli.app import App

output_option = click.option("-o", "--output", metavar="FILE", help="Write it to this file instead of standard output.")


def packed(app: App, kind: str, content: bytes, output: str | None, following: str) -> FileResult:
    """Write a binary file, and return what to print. A name is required.

    Args:
        following: the next step, such as a command; ``{}`` is the file's name, quoted for a shell.
    """
    if output is None:
        raise UsageError("output_missing", "this file is an archive, which a terminal cannot show", hint="-o FILE.tgz")
    _write(app, output, content, following)
    return FileResult(FileText(kind, ""))


def written(app: App, kind: str, text: str, output: str | None, following: str, *, secret: bool = False) -> FileResult:
    """Write the file if one is named, and return the text to print.

    Args:
        following: the next step, such as a command; ``{}`` is the file's name, quoted for a shell.
        secret: the file is for its owner alone.
    """
    if output is None:
        return FileResult(FileText(kind, text))
    _write(app, output, text.encode(), following, secret=secret)
    return FileResult(FileText(kind, text if app.as_json else ""))


def _write(app: App, output: str, content: bytes, following: str, *, secret: bool = False) -> None:
    try:
        if secret:
            Path(output).touch(mode=0o600)
            Path(output).chmod(0o600)
        Path(output).write_bytes(content)
    except OSError as error:
        raise MeshrayError(
            "file_closed", f"{output} cannot be written: {error.strerror}", hint="another file after -o"
        ) from None
    app.note(f"{output} is written; next: {following.format(shlex.quote(output))}")
