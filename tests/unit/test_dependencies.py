"""Every imported package is declared in pyproject.toml, and every declared one is imported."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = (REPOSITORY / "pyproject.toml").read_text()
#: Packages that are imported under another name than the one they are installed by.
IMPORT_NAMES = {
    "axe-playwright-python": "axe_playwright_python",
    "grafana-foundation-sdk": "grafana_foundation_sdk",
    "kubernetes-validate": "kubernetes_validate",
    "prometheus-client": "prometheus_client",
    "pytest-xdist": "xdist",
}
#: Declared, but never imported: programs, plugins and parts of the build.
NOT_IMPORTED = {
    "editables": "hatchling uses it for an editable install",
    "mypy": "program",
    "pytest-asyncio": "plugin of pytest",
    "pytest-timeout": "plugin of pytest",
    "ruff": "program",
    "uv": "program",
    "virtme-ng": "program",
}
#: Imported, but declared only by the package that depends on them.
#: Ray installs humanize for the job in docs/examples/requests, whose requirements.txt names it.
BROUGHT_BY = {
    "requests": "docker",
    "numpy": "ray",
    "fastapi": "ray",
    "humanize": "ray",
    "yaml": "ray",
    "grpc": "ray",
    "jsonschema": "kubernetes-validate",
    "markupsafe": "jinja2",
    "_pytest": "pytest",
}
#: Packages of this repository.
OWN = {"meshray", "tests", "hatch_build"}


def declared(*lists: str) -> set[str]:
    """Return the names of the packages in these lists of pyproject.toml."""
    names: set[str] = set()
    for name in lists:
        found = re.search(rf"^{name} = (\[.*?\])$", PROJECT, re.MULTILINE | re.DOTALL)
        assert found, name
        names |= {canonicalize_name(Requirement(text).name) for text in ast.literal_eval(found.group(1))}
    return names


@cache
def imports_of(file: Path) -> frozenset[str]:
    """Return the third-party top-level modules that the file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
    return frozenset(modules - sys.stdlib_module_names - OWN)


def imported(files: Iterable[Path]) -> dict[str, Path]:
    """Return each third-party top-level module that the files import, with one file that does."""
    return {module: file for file in files for module in imports_of(file)}


def modules_of(packages: set[str]) -> set[str]:
    """Return the top-level modules that the packages, and those that they bring, are imported by."""
    names = {IMPORT_NAMES.get(package, package) for package in packages}
    return names | {module for module, package in BROUGHT_BY.items() if package in packages}


def python_files(*folders: str) -> list[Path]:
    """Return the Python files below these folders of the repository."""
    return [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]


@pytest.mark.parametrize(
    ("files", "lists"),
    [
        (python_files("meshray"), ["dependencies", "ray", "docker"]),
        (python_files("docs"), ["ray", "examples"]),
        ([*python_files("tests"), REPOSITORY / "hatch_build.py"], ["dependencies", "ray", "docker", "dev"]),
        (python_files("scripts"), ["dev"]),
    ],
    ids=["meshray", "docs", "tests", "scripts"],
)
def test_every_imported_package_is_declared(files: list[Path], lists: list[str]) -> None:
    found = imported(files)
    assert found
    undeclared = {name: str(file) for name, file in found.items() if name not in modules_of(declared(*lists))}
    assert undeclared == {}


def test_every_dependency_is_imported_by_meshray() -> None:
    found = imported(python_files("meshray"))
    unused = {name for name in declared("dependencies", "docker") if IMPORT_NAMES.get(name, name) not in found}
    assert unused == set()


def test_every_other_package_is_imported_or_a_program() -> None:
    packages = declared("ray", "env", "examples", "dev")
    found = imported([*python_files("meshray", "tests", "docs", "scripts"), REPOSITORY / "hatch_build.py"])
    unused = {name for name in packages if IMPORT_NAMES.get(name, name) not in found}
    assert unused == set(NOT_IMPORTED)
