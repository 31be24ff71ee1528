"""The texts of the program, as its users could read them: every string in its source, with values filled in."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "meshray"


def texts_of(file: Path, overlay: str) -> Iterator[str]:
    """Yield the strings of a module; docstrings are left out, and a value in an f-string becomes a plausible word."""
    tree = ast.parse(file.read_text())
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part != node
    }
    inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in inner:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(_shown(part, overlay) for part in node.values)


def _shown(part: ast.expr, overlay: str) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    source = ast.unparse(part)
    return overlay if "overlay" in source else "meshray0" if re.search("interface|name", source) else "X"
