"""The connection to the Docker engine, and its failures as errors with a hint.

>>> engine = open_engine(os.environ)
>>> engine.client.containers.list()
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshray.errors import MeshrayError, UnreachableError
from meshray.linux.trusted_files import find_program

if TYPE_CHECKING:
    import docker

_UNIX = "unix://"
_DEFAULT = "/var/run/docker.sock"
#: Time limit for an answer, seconds. While an image is pulled, each line of progress is an answer.
_TIMEOUT_S = 60
_CONNECT_S = 5.0
#: Time limit for nvidia-smi, which wakes sleeping GPUs, seconds.
_NVIDIA_SMI_S = 15


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers.

    Attributes:
        address: as DOCKER_HOST would name it.
        info: what `docker info` shows.
    """

    address: str
    client: docker.DockerClient
    info: Mapping[str, Any] = field(default_factory=dict)

    def container_names(self) -> set[str]:
        """Return the names of all containers, including stopped ones."""
        with engine_errors("the engine's containers"):
            return {str(container.name) for container in self.client.containers.list(all=True, ignore_removed=True)}

    @property
    def confined(self) -> bool:
        """Whether the engine is a snap, which sees only files in users' home folders."""
        return str(self.info.get("DockerRootDir", "")).startswith("/var/snap/")

    @property
    def forbids_new_privileges(self) -> bool:
        """Whether programs in its containers cannot gain rights (sudo, setuid), even if the image allows it."""
        return any("no-new-privileges" in str(option) for option in self.info.get("SecurityOptions") or ())


def open_engine(environ: Mapping[str, str], address: str = "") -> Engine:
    """Return the engine at this address, or else the one that the docker program would use.

    Raises:
        MeshrayError: the docker package is missing, or this user may not use the engine.
        UnreachableError: there is no engine, or it does not run.
    """
    docker = _package()
    address = address or _address(environ)
    if address.startswith(_UNIX):
        _require_socket(Path(address.removeprefix(_UNIX)), environ)
    with engine_errors("the engine does not answer"):
        # TLS settings for a remote engine come from DOCKER_TLS_VERIFY and DOCKER_CERT_PATH.
        client = docker.from_env(version="auto", timeout=_TIMEOUT_S, environment={**environ, "DOCKER_HOST": address})
        return Engine(address, client, client.info())


def _package() -> Any:
    try:
        import docker
        import docker.errors
    except ImportError:
        raise MeshrayError(
            "no_docker_package",
            "--runtime docker needs the Python package docker, which is not installed here",
            hint="pip install 'meshray[docker]'",
        ) from None
    return docker


def _address(environ: Mapping[str, str]) -> str:
    """Return DOCKER_HOST, the address of the current context, or the first existing socket of an engine.

    The sockets are those of the system's engine, of the user's own (rootless), and of Docker Desktop.
    """
    if environ.get("DOCKER_HOST"):
        return environ["DOCKER_HOST"]
    with contextlib.suppress(Exception):  # the docker program reports its damaged configuration itself
        from docker.context import ContextAPI

        context = ContextAPI.get_current_context()
        if context is not None and context.name != "default" and context.Host:
            return str(context.Host)
    run = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    home = Path(environ.get("HOME") or "/")
    sockets = [
        Path(_DEFAULT),
        Path(run) / "docker.sock",
        home / ".docker/desktop/docker.sock",
        home / ".docker/run/docker.sock",
    ]
    return f"{_UNIX}{next((path for path in sockets if path.exists()), _DEFAULT)}"


def _require_socket(path: Path, environ: Mapping[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(str(path))
        except OSError as error:
            program = shutil.which("docker", path=environ.get("PATH"))
            raise no_engine(error.errno or errno.ETIMEDOUT, path, program or "", getpass.getuser()) from None


def no_engine(number: int, path: Path, program: str, user: str) -> MeshrayError:
    """Return why the engine does not answer on this socket (pure).

    Args:
        number: the errno of the attempt.
        program: path of the docker program; empty if it is not installed.
    """
    if number in (errno.EACCES, errno.EPERM):
        return MeshrayError(
            "docker_not_permitted",
            f"{user} may not use the Docker engine at {path}",
            hint=f"sudo usermod -aG docker {user}, then log in again; or say the same with sudo",
        )
    if not program and number == errno.ENOENT:
        return UnreachableError(
            "no_docker",
            f"there is no Docker here: no program docker, no engine at {path}",
            hint="install Docker (https://docs.docker.com/engine/install), or join without --runtime docker",
        )
    start = "sudo snap start docker" if program.startswith("/snap/") else "sudo systemctl start docker"
    return UnreachableError(
        "docker_not_running",
        f"the Docker engine does not run: nobody answers at {path}",
        hint=f"{start}, or start Docker Desktop; another engine: DOCKER_HOST=unix:///path/to/docker.sock",
    )


@contextlib.contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turn errors of the engine in this block into MeshrayError. ``what`` begins the message."""
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.APIError as error:
        raise refusal(what, str(error.explanation or error)) from None
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise UnreachableError(
            "docker_silent", f"{what}: {error}"[:400], hint="docker info; is the engine healthy?"
        ) from None


def count_gpus() -> int:
    """Return how many GPUs the driver of this machine lists; 0 without a driver."""
    program = find_program("nvidia-smi", os.environ)
    if program is None:
        return 0
    try:
        done = subprocess.run([str(program), "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


#: Words in the engine's message, error code, meaning, hint.
_REFUSALS = (
    (
        ("/dev/net/tun",),
        "no_tun",
        "the engine's machine has no /dev/net/tun",
        "sudo modprobe tun, on the machine of the engine",
    ),
    (
        ("could not select device driver", "nvidia-container-cli", "libnvidia-ml"),
        "no_gpu_runtime",
        "the engine cannot pass GPUs to containers",
        "install nvidia-container-toolkit, sudo nvidia-ctk runtime configure, restart Docker",
    ),
    (
        ("no space left on device",),
        "disk_full",
        "the engine's disk is full",
        "docker system df shows what uses the space",
    ),
    (
        (
            "pull access denied",
            "manifest unknown",
            "not found: manifest",
            "repository does not exist",
            "invalid reference",
        ),
        "no_image",
        "the image does not exist",
        "--image with one that exists: docker image ls, or https://hub.docker.com/r/rayproject/ray/tags",
    ),
    (
        ("no such host", "i/o timeout", "connection refused", "network is unreachable", "Client.Timeout"),
        "no_registry",
        "the registry of the image does not answer",
        "docker load an image of yours, then --image with its name",
    ),
    (
        ("executable file not found", "no such file or directory: unknown"),
        "image_unusable",
        "the image has no sh or no Python, which every node needs",
        "--image with an image that contains Ray, for example rayproject/ray",
    ),
)


def refusal(what: str, message: str) -> MeshrayError:
    """Return the error for a message of the engine (pure)."""
    line = " ".join(message.split())[:300]
    for signs, code, meaning, hint in _REFUSALS:
        if any(sign.lower() in message.lower() for sign in signs):
            return MeshrayError(code, f"{what}: {meaning} ({line})", hint=hint)
    return MeshrayError("docker_refused", f"{what}: {line}", hint="docker info; docker events")
