"""Documents, docstrings, comments, messages and the names of tests use the usual words of the field."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_links import PAGES, REPOSITORY, prose

#: A pattern that no sentence may match → what to write.
UNUSUAL = {
    r"told|tells?": "report, notify, show",
    r"told off": "reject",
    r"whoever|whosoever": "anyone who, the user who",
    r"somebody|anybody": "someone, a user, anyone",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"anew": "again",
    r"(?:by|of) (?:it|them)sel(?:f|ves)": "automatically, or nothing",
    r"stands?(?! for)|stood": "is",
    r"the ways? (?:to|of|from|that)": "the path, the connection",
    r"(?<!there )(?:is|are|was|were) no (?!longer\b|more\b)\w+": "is not a",
    r"not there any ?more": "missing, does not exist",
    r"(?:comes?|came) about": "is made",
    r"throws? out|thrown out|(?:is|are) content": "removes, accepts",
    r"strangers?": "unauthenticated",
    r"nudges?": "resets",
    r"without a word": "silently",
}
_PATTERNS = {re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE): usual for pattern, usual in UNUSUAL.items()}
MODULES = sorted((REPOSITORY / "meshray").rglob("*.py"))
#: This module quotes the unusual words.
TESTS = sorted({*(REPOSITORY / "tests").rglob("*.py")} - {Path(__file__).resolve()})


def sentences(module: Path) -> Iterator[str]:
    """Return the comments and the texts of a module: docstrings, messages, and the fixed parts of f-strings."""
    text = module.read_text()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r">>> .*", "", node.value)


def described(module: Path) -> Iterator[str]:
    """Return the names of a module's functions, as words, and its docstrings."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name.strip("_").replace("_", " ")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            yield ast.get_docstring(node) or ""


def unusual(text: str) -> list[str]:
    """Return what the text says in unusual words, with the usual ones."""
    flat = " ".join(text.split())
    return [f"{found[0]!r}: write {usual}" for pattern, usual in _PATTERNS.items() for found in pattern.finditer(flat)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_pages_use_the_usual_words(page: Path) -> None:
    assert unusual(re.sub(r"`[^`\n]*`", "", prose(page))) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(REPOSITORY)))
def test_modules_use_the_usual_words(module: Path) -> None:
    assert [words for text in sentences(module) for words in unusual(text)] == []


@pytest.mark.parametrize("module", TESTS, ids=lambda module: str(module.relative_to(REPOSITORY)))
def test_names_and_docstrings_of_tests_use_the_usual_words(module: Path) -> None:
    assert [words for text in described(module) for words in unusual(text)] == []


def test_unusual_words_are_found() -> None:
    assert unusual("Whoever is told\nthat this is no\nnode mends it.") != []
    assert unusual("There is no node, and it is no longer used; the letters stand for a state.") == []
