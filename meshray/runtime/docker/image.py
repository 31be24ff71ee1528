"""The image of a node: the choice, the check whether it can run a node, and the installation of meshray in it.

rayproject/ray ──► inspected: its Python, its Ray, its meshray ──► used unchanged
                                                            └────► with this meshray installed: meshray/node:…

Packages come from this installation as wheels (`wheels`), so no network is needed if the image has the same Python.
Wheels that do not fit come from PyPI. No folder of this machine is mounted for that: engines that are confined (snap)
or on another machine (DOCKER_HOST) would not see it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshray import __version__
from meshray.errors import MeshrayError
from meshray.model.node import Versions
from meshray.model.release import PYTHON, RAY, ray_difference, release
from meshray.runtime.docker.container_plan import LABEL
from meshray.runtime.docker.engine import Engine, engine_errors

if TYPE_CHECKING:
    from docker.models.containers import Container
    from docker.models.images import Image

OLDEST_PYTHON = (3, 10)
#: Ray publishes images for these two; the second has a suffix.
_SUFFIXES = {"aarch64": "-aarch64", "arm64": "-aarch64"}
#: Time limits for inspecting an image, and for installing from a package index, seconds.
_INSPECT_S, _INSTALL_S = 60, 600
_WHEELS = "/opt/meshray-wheels"
#: Prints the content of an image. It runs in the image, so it uses only the standard library of any Python 3.
_INSPECT_PROGRAM = """
import json, os, shutil, sys
def version(name):
    try:
        from importlib import metadata
        return metadata.version(name)
    except Exception:
        return ""
print(json.dumps({"python": sys.executable, "version": "%d.%d.%d" % sys.version_info[:3], "ray": version("ray"),
    "meshray": version("meshray"), "uid": os.getuid(), "closes": bool(shutil.which("nft") or shutil.which("iptables")
    or os.path.exists("/usr/sbin/nft") or os.path.exists("/usr/sbin/iptables"))}))
"""
_ANY_PYTHON = 'for p in python python3; do command -v $p >/dev/null && exec $p -c "$0"; done; echo "{}"'
#: Runs as root. $0 is the image's interpreter. nftables, which closes Ray's ports to the bridge, is optional.
_INSTALL = f"""
set -e
install() {{ "$0" -m pip install --quiet --find-links {_WHEELS} "$@" 'meshray=={__version__}'; }}
install --no-index || install
rm -rf {_WHEELS}
command -v nft || command -v iptables || {{ apt-get -q update && apt-get -q -y install --no-install-recommends nftables
rm -rf /var/lib/apt/lists/*; }} || echo "neither nft nor iptables"
"""
_PIP = {
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_BREAK_SYSTEM_PACKAGES": "1",  # the image is not used for anything else
    "PIP_NO_CACHE_DIR": "1",
    "DEBIAN_FRONTEND": "noninteractive",
}

#: Called with name, state and detail of each stage.
Stage = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Content:
    """The content of an image.

    Attributes:
        python: path of its interpreter, empty if it has none.
        version: of Python.
        ray, meshray: versions, empty if they are not installed.
        uid: of the user as whom its programs run.
        closes: it has a program that can close Ray's ports.
    """

    python: str = ""
    version: str = ""
    ray: str = ""
    meshray: str = ""
    uid: int = 0
    closes: bool = True

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Content:
        """Decode what `_INSPECT_PROGRAM` printed."""
        texts = {name: str(value.get(name, "")) for name in ("python", "version", "ray", "meshray")}
        return cls(**texts, uid=int(value.get("uid", 0)), closes=value.get("closes") is True)


@dataclass(frozen=True)
class NodeImage:
    """An image that can run a node."""

    id: str
    name: str
    content: Content


def matching_image(ray: str, python: str, architecture: str, gpus: bool) -> str:
    """Return the name of the image with the head's Ray and Python (pure).

    >>> matching_image("2.60.0", "3.12.3", "x86_64", gpus=True)
    'rayproject/ray:2.60.0-py312-gpu'
    """
    short = "".join(python.split(".")[:2])
    return f"rayproject/ray:{ray}-py{short}{'-gpu' if gpus else ''}{_SUFFIXES.get(architecture, '')}"


def require_usable(name: str, found: Content, head: Versions, with_ray: bool) -> None:
    """Check that a node can run on an image (pure).

    Args:
        head: the head's versions, empty if they are unknown or it runs no Ray.

    Raises:
        MeshrayError: what is missing or does not match.
    """
    if not found.python:
        raise MeshrayError(
            "image_unusable", f"the image {name} has no Python", hint="--image with an image that contains Ray"
        )
    if release(found.version)[:2] < OLDEST_PYTHON:
        raise MeshrayError(
            "image_python",
            f"the image {name} has Python {found.version}; meshray needs {'.'.join(map(str, OLDEST_PYTHON))} or later",
            hint="--image with a newer one, for example rayproject/ray:…-py312; the head needs the same Python",
        )
    if not with_ray:
        return
    if not found.ray:
        raise MeshrayError(
            "image_without_ray",
            f"the image {name} has no Ray (its Python is {found.python})",
            hint="--image with one that has, --no-ray for a node without, or in a Dockerfile: "
            f"RUN pip install 'ray[default]=={head.ray or 'VERSION'}'",
        )
    difference = ray_difference(Versions(__version__, found.ray, found.version), head) if head.ray else None
    if difference in (RAY, PYTHON):
        raise MeshrayError(
            "version_mismatch",
            f"the head runs Ray {head.ray} on Python {head.python}, the image {name} has Ray {found.ray} on Python "
            f"{found.version}",
            hint=f"without --image: meshray takes {matching_image(head.ray, head.python, platform.machine(), False)}",
        )


def prepare(engine: Engine, name: str, head: Versions, with_ray: bool, stage: Stage) -> NodeImage:
    """Return the image with this meshray in it; create it unless it exists. A failed attempt leaves nothing behind.

    Raises:
        MeshrayError: the image cannot be pulled or created, or no node can run on it.
    """
    stage("image", "run", name)
    image = _get(engine, name, stage)
    content = _inspect(engine, image, name)
    require_usable(name, content, head, with_ray)
    if content.meshray != __version__:
        image, content = _with_meshray(engine, image, name, content, stage)
    stage("image", "ok", f"{name}: Ray {content.ray or '-'}, Python {content.version}")
    return NodeImage(str(image.id), name, content)


def _get(engine: Engine, name: str, stage: Stage) -> Image:
    import docker.errors

    with engine_errors(f"the image {name}"):
        try:
            return engine.client.images.get(name)
        except docker.errors.ImageNotFound:
            pass
        stage("image", "run", f"{name} is being pulled")
        return engine.client.images.pull(name)


def _inspect(engine: Engine, image: Image, name: str) -> Content:
    command = ["-c", _ANY_PYTHON, _INSPECT_PROGRAM]
    with _temporary_container(
        engine, image, name, entrypoint=["sh"], command=command, network_mode="none"
    ) as container:
        _, output = _run(container, _INSPECT_S, name)
    try:
        return Content.from_json(json.loads(output.strip().splitlines()[-1]))
    except (ValueError, IndexError, AttributeError):
        raise MeshrayError(
            "image_unusable",
            f"the image {name} cannot be inspected: its Python printed {output.strip()[-200:]!r}",
            hint="--image with an image that contains Ray",
        ) from None


def _with_meshray(engine: Engine, image: Image, name: str, base: Content, stage: Stage) -> tuple[Image, Content]:
    import docker.errors

    from meshray.installation.wheels import collect

    wheels = collect()
    mark = hashlib.sha256(str(image.id).encode())
    for wheel in wheels:
        mark.update(wheel.content)
    repository, tag = "meshray/node", f"{__version__}-{mark.hexdigest()[:12]}"
    with engine_errors("the images"):
        try:
            built = engine.client.images.get(f"{repository}:{tag}")
            return built, _inspect(engine, built, name)
        except docker.errors.ImageNotFound:
            pass
    stage("image", "run", f"meshray is being installed into {name}")
    command = ["-c", _INSTALL, base.python]
    with _temporary_container(
        engine, image, name, entrypoint=["sh"], command=command, user="0", environment=_PIP
    ) as container:
        with engine_errors(f"meshray cannot be copied into {name}"):
            container.put_archive("/", archive({f"{_WHEELS[1:]}/{wheel.name}": wheel.content for wheel in wheels}))
        code, output = _run(container, _INSTALL_S, name)
        if code:
            last_line = (output.strip().splitlines() or ["it printed nothing"])[-1]
            raise MeshrayError(
                "image_install",
                f"meshray cannot be installed into {name}: {last_line[-300:]}",
                hint="build an image that contains it (containers/Dockerfile), then --image with its name",
            )
        with engine_errors(f"the image of {name} with meshray cannot be saved"):
            built = container.commit(repository, tag, changes=[f"LABEL {LABEL}={__version__}"])
    return built, _inspect(engine, built, name)


@contextlib.contextmanager
def _temporary_container(engine: Engine, image: Image, name: str, **settings: Any) -> Iterator[Container]:
    """Create a container that is removed after the block."""
    with engine_errors(f"the image {name}"):
        container = engine.client.containers.create(str(image.id), labels={LABEL: "trial"}, **settings)
    try:
        yield container
    finally:
        with engine_errors(f"the temporary container {container.name} of {name} could not be removed"):
            container.remove(force=True, v=True)


def _run(container: Container, deadline_s: float, name: str) -> tuple[int, str]:
    """Run the container; return its exit code and its output."""
    with engine_errors(f"the image {name}"):
        container.start()
        code = int(container.wait(timeout=deadline_s)["StatusCode"])
        return code, container.logs().decode(errors="replace")


def archive(files: Mapping[str, bytes], mode: int = 0o644) -> bytes:
    """Return a tar archive of these files, for `put_archive`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
