"""Generate the man pages from the commands: `meshray(1)`, and one page for each command.

$ python -m meshray.cli.manual man      # writes man/meshray.1, man/meshray-init.1, …
"""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from meshray import __version__
from meshray.cli.command_registry import SECTIONS
from meshray.cli.main import cli
from meshray.cli.reference import EXIT_CODES, VARIABLES

#: The mark of a paragraph in a command's help that keeps its lines (click).
_VERBATIM = "\b\n"
_LONGEST_LINE = 80
_DATE = re.compile(r'^(\.TH \S+ 1) "([0-9-]*)"', re.MULTILINE)
#: The width for which help texts are requested, so that no line is folded.
_WIDTH = 10_000


def pages() -> dict[str, str]:
    """Return the text of each page, without a date, by the name of its file."""
    context = click.Context(cli, info_name="meshray", **{**cli.context_settings, "terminal_width": _WIDTH})
    found = {"meshray.1": _joined(_main_page(context))}
    for section in SECTIONS.values():
        for name, known in section.items():
            command = cli.get_command(context, name)
            if command is not None:
                found[f"meshray-{name}.1"] = _joined(_command_page(command, name, known.summary, context))
    return found


def _joined(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def _main_page(context: click.Context) -> Iterator[str]:
    summary, *paragraphs = _help(cli)
    yield from _head("meshray", summary.rstrip("."))
    yield "\\fBmeshray\\fR [\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGS\\fR]..."
    yield from _description(paragraphs)
    for title, section in SECTIONS.items():
        yield f".SH {_text(title.upper())}"
        for name, known in section.items():
            yield from _item(f"\\fBmeshray\\-{_text(name)}\\fR(1)", known.summary)
    yield from _options(cli, context)
    yield ".SH ENVIRONMENT"
    for names, meaning in VARIABLES:
        yield from _item(f"\\fB{_text(names)}\\fR", meaning)
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES:
        yield from _item(f"\\fB{code}\\fR", meaning)
    yield ".SH FILES"
    yield from _item("\\fI/var/lib/meshray\\fR", "the state of root's node")
    yield from _item("\\fI~/.local/share/meshray\\fR", "the state of a node without root")


def _command_page(command: click.Command, name: str, summary: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    yield from _head(f"meshray-{name}", summary.rstrip("."))
    yield _synopsis(command, context)
    yield from _description(_help(command))
    yield from _options(command, context)
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            found = command.get_command(context, verb)
            if found is not None:
                yield from _verb(found, click.Context(found, info_name=verb, parent=context))
    yield ".SH SEE ALSO"
    yield "\\fBmeshray\\fR(1)"


def _verb(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield a command of a group, as a section of the group's page."""
    yield f".SH MESHRAY {_text(context.command_path.removeprefix('meshray ').upper())}"
    yield _synopsis(command, context)
    yield from _paragraphs(_help(command))
    yield from _option_items(command, context)


def _head(name: str, summary: str) -> Iterator[str]:
    yield '.\\" Made by python -m meshray.cli.manual; do not edit by hand.'
    yield f'.TH "{_text(name.upper())}" 1 "" "meshray {__version__}" "meshray manual"'
    # No hyphenation, and a ragged right margin: users find and copy commands.
    yield ".nh"
    yield ".ad l"
    yield ".SH NAME"
    yield f"{_text(name)} \\- {_text(summary)}"
    yield ".SH SYNOPSIS"


def _synopsis(command: click.Command, context: click.Context) -> str:
    pieces = " ".join(command.collect_usage_pieces(context))
    return f"\\fB{_text(context.command_path)}\\fR {_text(pieces)}"


def _description(paragraphs: list[str]) -> Iterator[str]:
    yield ".SH DESCRIPTION"
    yield from _paragraphs(paragraphs)


def _paragraphs(paragraphs: list[str]) -> Iterator[str]:
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".PP"
        if not paragraph.startswith(_VERBATIM):
            yield from _folded(paragraph)
            continue
        title, *shown = paragraph.removeprefix(_VERBATIM).splitlines()
        yield _text(title)
        yield ".PP"
        yield ".RS 4"
        yield ".nf"
        yield from (_text(line.strip()) for line in shown)
        yield ".fi"
        yield ".RE"


def _help(command: click.Command) -> list[str]:
    return inspect.cleandoc(command.help or "").split("\n\n")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    yield ".SH OPTIONS"
    yield from _option_items(command, context)


def _option_items(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            yield from _item(f"\\fB{_text(record[0])}\\fR", record[1])


def _item(term: str, meaning: str) -> Iterator[str]:
    yield ".TP"
    yield term
    yield from _folded(meaning)


def _folded(text: str) -> Iterator[str]:
    """Yield the lines of a text that roff fills, at a length that suits editors and linters."""
    words, line = text.split(), ""
    for word in map(_text, words):
        if line and len(line) + 1 + len(word) > _LONGEST_LINE:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
    yield line


def _text(text: str) -> str:
    """Return the text escaped for roff, so that nothing in it is a command, an escape or a typographic character."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    escaped = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", escaped)
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def undated(text: str) -> str:
    """Return a page without its date."""
    return _DATE.sub(r'\1 ""', text, count=1)


def main(folder: str) -> None:
    """Write the pages into the folder, and remove those of removed commands.

    A page's date is the day on which its text last changed.
    """
    place, current = Path(folder), pages()
    place.mkdir(exist_ok=True)
    for old in place.glob("meshray*.1"):
        if old.name not in current:
            old.unlink()
    today = time.strftime("%Y-%m-%d", time.gmtime())
    for name, text in current.items():
        file = place / name
        if not file.exists() or undated(file.read_text()) != text:
            file.write_text(_DATE.sub(rf'\1 "{today}"', text, count=1))


if __name__ == "__main__":
    main(sys.argv[1])
