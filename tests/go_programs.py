"""Programs in Go that tests and benchmarks need, built once into a cache outside of this repository.

The modules in requirements/ name the versions, and their go.sum the checksums. The cache is
$XDG_CACHE_HOME/meshray-tests, by default ~/.cache/meshray-tests. A program that is there is not built again, and
compiled packages are kept until all programs of a group are built, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
REQUIREMENTS = REPOSITORY / "requirements"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshray-tests"
#: The priority of the compilers: building takes minutes of all processors.
NICENESS = 10
FETCH_S, BUILD_S = 300, 1200


@dataclass(frozen=True)
class Module:
    """A folder of requirements/ with a Go module.

    Attributes:
        group: the folder of requirements/ that contains `folder`. Its modules share Go's own caches while they build.
        path: the module whose version is that of the programs.
        packages: of each program, its package.
        tags: of the build.
        uses_c: part of the program is in C.
    """

    group: str
    folder: str
    path: str
    packages: Mapping[str, str]
    tags: str = ""
    uses_c: bool = False

    @property
    def source(self) -> Path:
        """The folder of go.mod."""
        return REQUIREMENTS / self.group / self.folder

    @property
    def version(self) -> str:
        """The version that go.mod requires."""
        text = (self.source / "go.mod").read_text()
        found = re.search(rf"^(?:require|\t)\s*{re.escape(self.path)} (v\S+)", text, re.MULTILINE)
        assert found, f"{self.source / 'go.mod'} does not require {self.path}"
        return found[1]

    @property
    def place(self) -> Path:
        """The folder of the programs; another one as soon as anything they are built from has changed."""
        source = "".join(path.read_text() for path in sorted(self.source.iterdir()))
        return CACHE / f"{self.folder}-{self.version}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"

    def build(self, go: str, name: str, link_flags: Sequence[str] = ()) -> None:
        """Build a program unless it is there.

        Raises:
            subprocess.CalledProcessError: the build failed.
            subprocess.TimeoutExpired: the build took longer than `BUILD_S`.
        """
        target = self.place / name
        if target.exists():
            return
        self.place.mkdir(parents=True, exist_ok=True)
        print(f"building {name} {self.version}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=self.place) as unfinished:
            made = Path(unfinished) / name
            options = ["-mod=readonly", "-trimpath", f"-tags={self.tags}", "-ldflags", " ".join(["-s -w", *link_flags])]
            self.run_go(go, ["build", *options, "-o", str(made), self.packages[name]], BUILD_S)
            made.rename(target)

    def run_go(self, go: str, words: Sequence[str], deadline_s: float) -> str:
        """Run a command of Go in the module, and return what it printed."""
        done = subprocess.run(
            ["nice", "-n", str(NICENESS), go, *words],
            cwd=self.source,
            env={**os.environ, **_settings(self.group), "CGO_ENABLED": str(int(self.uses_c))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=deadline_s,
        )
        return done.stdout


@contextmanager
def building(group: str, modules: Sequence[Module]) -> Iterator[None]:
    """Hold the lock of a group of programs, and remove what a killed build has left."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{group}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for module in modules:
            for folder in module.place.glob("tmp*"):
                shutil.rmtree(folder)
        yield


def discard_go_caches(group: str) -> None:
    """Remove Go's own caches, which only a build needs."""
    shutil.rmtree(_go_caches(group), ignore_errors=True)


def _go_caches(group: str) -> Path:
    return CACHE / f"{group}-go"


def _settings(group: str) -> dict[str, str]:
    """Return settings for modules that can be removed (Go write-protects them otherwise), without the user's own."""
    caches = _go_caches(group)
    return {
        "GOCACHE": str(caches / "build"),
        "GOMODCACHE": str(caches / "modules"),
        "GOFLAGS": "-modcacherw",
        "GOWORK": "off",
    }
