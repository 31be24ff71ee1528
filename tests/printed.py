"""The blocks of commands in the how-to guides, so that tests can run them as they are printed.

A line above each block is one of

    <!-- tested: tests/lab/test_x.py::test_y, … -->     these tests run every command of the block
    <!-- not tried: REASON -->                          the site shows the reason to its readers
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
GUIDES = [
    *sorted((REPOSITORY / "docs/how-to").glob("*.md")),
    *(REPOSITORY / "docs" / name for name in ("slurm.md", "kubernetes.md", "monitoring.md")),
]
MARK = re.compile(r"<!-- (tested|not tried): (.+) -->")
#: Languages of fenced blocks that a shell does not run.
OTHER_LANGUAGES = {"python", "yaml"}
#: A block indented by four spaces or fenced, after an empty line, with the line above that.
BLOCK = re.compile(
    r"(?:^(?P<above>.*)\n)?\n(?P<code>(?: {4}.*\n|\n(?= {4}))+|```(?P<language>\w*)\n(?:.*\n)*?```)", re.M
)
#: A command of meshray with its words, up to a pipe, a separator or a remark.
COMMAND = re.compile(r"(?:^|[\s;(/])meshray\"?\)?\"? (?P<words>[a-z][^|;)\n]*)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        mark: ``tested``, ``not tried``, or empty.
        text: what follows the mark.
    """

    page: str
    mark: str
    text: str
    code: str

    def commands(self) -> list[list[str]]:
        """Return the words of each command of meshray."""
        joined = re.sub(r"\\\n\s*", " ", self.code)
        return [shlex.split(found["words"], comments=True) for found in COMMAND.finditer(joined)]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page that a shell runs."""
    for found in BLOCK.finditer(page.read_text()):
        if found["language"] not in OTHER_LANGUAGES:
            mark = MARK.fullmatch(found["above"] or "")
            code = re.sub(r"^ {4}", "", found["code"], flags=re.MULTILINE)
            yield Block(page.name, mark[1] if mark else "", mark[2] if mark else "", code)


def printed(page: str, beginning: str, *replacements: tuple[str, str]) -> str:
    """Return the one block of a guide that begins with this text, as a piece of shell.

    Args:
        page: the name of the guide's file.
        replacements: what the reader has to replace, such as TOKEN, with its value.

    Raises:
        AssertionError: the page has no such block, or two, or nothing in it is replaced.
    """
    (path,) = [guide for guide in GUIDES if guide.name == page]
    found = [block.code for block in blocks(path) if block.code.startswith(beginning)]
    assert len(found) == 1, f"{page}: {len(found)} blocks begin with {beginning!r}"
    code = found[0]
    for old, new in replacements:
        assert old in code, f"{page}: {beginning!r} has no {old!r}"
        code = code.replace(old, new)
    return code


def programs(page: str) -> list[str]:
    """Return the programs in Python on a guide, in their order."""
    (path,) = [guide for guide in GUIDES if guide.name == page]
    return [
        found["code"].removeprefix("```python\n").removesuffix("```")
        for found in BLOCK.finditer(path.read_text())
        if found["language"] == "python"
    ]
