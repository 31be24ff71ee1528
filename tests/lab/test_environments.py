"""Environments that match the head, built by a real uv without internet, from a cache filled before."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from meshray.environment.builder import is_complete
from meshray.environment.matched import Build, Matched
from meshray.errors import MeshrayError
from meshray.linux.user import User
from meshray.model.environment import Environment
from tests.lab.host import REPOSITORY

UV = Path(sys.executable).parent / "uv"
OWN = ".".join(map(str, sys.version_info[:3]))
#: The candidates for the other Python, in this order.
OTHERS = [f"3.{minor}" for minor in (12, 11, 13, 10) if minor != sys.version_info[1]]
#: Small, without dependencies, and not brought by Ray.
BESIDE = "iniconfig==2.0.0"
FILL_S = 300


@dataclass(frozen=True)
class Ground:
    """The requirements of uv without internet.

    Attributes:
        folder: visible in every host, unlike /tmp and the home folders.
        meshray: the program, on the other Python.
        copied: the source of the copy of the other Python at ``folder / "python"``; None: hosts see it in its own
            place.
    """

    folder: Path
    meshray: Path
    copied: Path | None

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment of a user who has the head's Python on PATH, and no internet."""
        return {
            "PATH": f"{self.meshray.parent}:{sys.base_prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "UV_OFFLINE": "1",
            "UV_CACHE_DIR": str(self.folder / "uv"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    @property
    def environment(self) -> Environment:
        """Return the head's environment."""
        return Environment(version("ray"), OWN, f"{BESIDE}\n")

    def build(self, cache: Path) -> Build:
        return Build(self.environment, User.invoking(), {**self.environ, "XDG_CACHE_HOME": str(cache)})


def uv(*words: str | Path, cache: Path) -> None:
    done = subprocess.run(
        [UV, "--quiet", *words],
        env={**os.environ, "UV_CACHE_DIR": str(cache), "UV_PYTHON_INSTALL_DIR": str(cache.parent / "pythons")},
        capture_output=True,
        text=True,
        timeout=FILL_S,
        check=False,
    )
    if done.returncode:
        raise MeshrayError("no_uv", done.stderr[-500:])


def other_python(folder: Path) -> tuple[Path, Path | None]:
    """Return another Python that every host sees, and the source of its copy. Skips the test if there is none."""
    for minor in OTHERS:
        for program in (Path("/usr/bin") / f"python{minor}", Path("/usr/local/bin") / f"python{minor}"):
            if program.exists():
                return program, None
        for program in sorted(Path.home().glob(f".pyenv/versions/{minor}.*/bin/python{minor}")):
            # Home folders are empty in a host.
            shutil.copytree(program.parent.parent, folder / "python", symlinks=True, copy_function=os.link)
            return folder / "python/bin" / program.name, program.parent.parent
    try:
        uv("python", "install", "3.12" if sys.version_info[1] != 12 else "3.13", cache=folder / "uv")
    except MeshrayError as error:
        pytest.skip(f"no second Python on this machine, and uv cannot get one: {error}")
    return next((folder / "pythons").glob("*/bin/python3.1[23]")), None


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    folder = Path(tempfile.mkdtemp(prefix="meshray-test-environments-", dir="/var/cache"))
    try:
        folder.chmod(0o755)
        cache = folder / "uv"
        program, copied = other_python(folder)
        uv("venv", "--python", program, folder / "other", cache=cache)
        ray = f"ray[default,serve]=={version('ray')}"
        try:
            python = folder / "other/bin/python"
            uv("pip", "install", "--python", python, "-e", REPOSITORY, ray, "uv", cache=cache)
            # The wheels of the head's own Python as well.
            uv("venv", "--python", sys.executable, folder / "filled", cache=cache)
            uv("pip", "install", "--python", folder / "filled/bin/python", ray, BESIDE, cache=cache)
        except MeshrayError as error:
            pytest.skip(f"the package index does not answer: {error}")
        yield Ground(folder, folder / "other/bin/meshray", copied)
    finally:
        shutil.rmtree(folder)


def environments(cache: Path) -> list[str]:
    folder = cache / "meshray/envs"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_joins_at_the_same_time_use_one_build(ground: Ground) -> None:
    cache, output = ground.folder / "at-once", list[str]()
    with ThreadPoolExecutor(3) as pool:
        found: list[Matched] = list(pool.map(lambda _: ground.build(cache).run(output.append), range(3)))
    assert sorted(one.built for one in found) == [False, False, True]
    assert {str(one.folder) for one in found} == {str(cache / "meshray/envs" / environments(cache)[0])}
    assert "waiting for another build" in output
    assert len(environments(cache)) == 1


def test_a_build_that_is_killed_leaves_nothing_that_is_used(ground: Ground) -> None:
    cache = ground.folder / "killed"
    build = ground.build(cache)

    def kill(words: str) -> None:
        if words.startswith("Ray "):
            process = build._process
            assert process is not None
            os.killpg(process.pid, signal.SIGKILL)

    with pytest.raises(MeshrayError, match="was killed"):
        build.run(kill)
    (left,) = environments(cache)
    assert ".new-" in left
    assert not is_complete(cache / "meshray/envs" / left, ground.environment)
    assert ground.build(cache).run(lambda _: None).built
    assert len(environments(cache)) == 1


def test_a_build_that_is_cancelled_takes_back_what_it_began(ground: Ground) -> None:
    cache = ground.folder / "cancelled"
    build = ground.build(cache)
    with pytest.raises(MeshrayError) as caught:
        build.run(lambda words: build.cancel() if words.startswith("Ray ") else None)
    assert caught.value.code == "interrupted"
    assert environments(cache) == []


def test_a_full_disk_is_one_clear_error(ground: Ground) -> None:
    with small_disk(ground.folder / "small", "8m") as cache:
        with pytest.raises(MeshrayError) as caught:
            ground.build(cache).run(lambda _: None)
        assert caught.value.code == "environment_no_room"
        assert environments(cache) == []
