"""No circles between modules."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Graph = Mapping[str, frozenset[str]]


class Depth(IntEnum):
    """Which imports count; each value includes the ones before it."""

    RUN = 0  #: those that run when the module is imported
    TYPES = 1  #: and those below TYPE_CHECKING
    DEFERRED = 2  #: and those in functions


@functools.cache
def modules() -> dict[str, list[ast.stmt]]:
    """Return the syntax tree of every module of the package by its dotted name."""
    trees = {}
    for file in (ROOT / "meshray").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(file.read_text()).body
    return trees


def imports(body: list[ast.stmt], depth: Depth) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each import that counts at this depth."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imports([*(node.body if depth >= Depth.TYPES else []), *node.orelse], depth)
        elif depth >= Depth.DEFERRED or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "handlers", "finalbody"):
                yield from imports(getattr(node, part, []), depth)


def graph(trees: Mapping[str, list[ast.stmt]], depth: Depth) -> Graph:
    """Return the modules of the package that each module imports. A package itself is not counted as imported."""

    def target(module: str, name: str) -> str:
        return f"{module}.{name}" if f"{module}.{name}" in trees else module

    return {
        module: frozenset(target(*pair) for pair in imports(body, depth)) & trees.keys() - {module}
        for module, body in trees.items()
    }


def circles(edges: Graph) -> frozenset[frozenset[str]]:
    """Return the strongly connected components of more than one module (Tarjan)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == order[module]:
            component = frozenset(stack[stack.index(module) :])
            del stack[stack.index(module) :]
            found.update({component} if len(component) > 1 else set())

    for module in sorted(edges):
        if module not in order:
            visit(module)
    return frozenset(found)


def shown(found: frozenset[frozenset[str]]) -> list[str]:
    """Return each circle as one line, without the package's name."""
    return sorted(" ".join(sorted(module.removeprefix("meshray.") for module in circle)) for circle in found)


@pytest.mark.parametrize("depth", Depth, ids=lambda depth: depth.name)
def test_there_are_no_circular_imports(depth: Depth) -> None:
    assert shown(circles(graph(modules(), depth))) == []


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, ["a b"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e", "a"}, "e": {"d"}}, ["a b c", "d e"]),
    ],
)
def test_circular_imports_are_found(edges: Mapping[str, set[str]], expected: list[str]) -> None:
    assert shown(circles({module: frozenset(others) for module, others in edges.items()})) == expected


@pytest.mark.parametrize(("depth", "expected"), [(Depth.RUN, "ace"), (Depth.TYPES, "abce"), (Depth.DEFERRED, "abceg")])
def test_each_kind_of_import_is_found(depth: Depth, expected: str) -> None:
    code = (
        "import a\nif TYPE_CHECKING:\n    import b\n"
        "try:\n    from c import d\nexcept E:\n    import e\n"
        "def f():\n    import g"
    )
    assert "".join(module for module, _ in imports(ast.parse(code).body, depth)) == expected
