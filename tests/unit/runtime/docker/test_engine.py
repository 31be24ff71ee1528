from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from meshray.errors import MeshrayError, UnreachableError
from meshray.runtime.docker.engine import Engine, no_engine, open_engine, refusal

SOCKET = Path("/var/run/docker.sock")


@pytest.mark.parametrize(
    ("number", "program", "code", "fix"),
    [
        (errno.ENOENT, "", "no_docker", "docs.docker.com"),
        (errno.ENOENT, "/usr/bin/docker", "docker_not_running", "systemctl start docker"),
        (errno.ENOENT, "/snap/bin/docker", "docker_not_running", "snap start docker"),
        (errno.ECONNREFUSED, "/usr/bin/docker", "docker_not_running", "DOCKER_HOST="),
        (errno.EACCES, "/usr/bin/docker", "docker_not_permitted", "usermod -aG docker ana"),
    ],
)
def test_each_reason_for_a_missing_engine_has_its_fix(number: int, program: str, code: str, fix: str) -> None:
    error = no_engine(number, SOCKET, program, "ana")
    assert error.code == code
    assert fix in error.hint


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ('error gathering device information while adding custom device "/dev/net/tun": no such file', "no_tun"),
        ('could not select device driver "" with capabilities: [[gpu]]', "no_gpu_runtime"),
        ("write /var/lib/docker/x: no space left on device", "disk_full"),
        ("pull access denied for x, repository does not exist", "no_image"),
        ("manifest for rayproject/ray:9 not found: manifest unknown", "no_image"),
        ("Get https://registry-1.docker.io/v2/: dial tcp: lookup registry-1.docker.io: no such host", "no_registry"),
        ('OCI runtime create failed: exec: "sh": executable file not found in $PATH: unknown', "image_unusable"),
        ("something that nobody has seen before", "docker_refused"),
    ],
)
def test_an_engines_refusal_is_reported_in_our_words(said: str, code: str) -> None:
    error = refusal("the image x", said)
    assert error.code == code
    assert error.message.startswith("the image x: ")
    assert error.hint


def test_without_the_docker_package_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(MeshrayError) as caught:
        open_engine({})
    assert caught.value.code == "no_docker_package"
    assert caught.value.hint == "pip install 'meshray[docker]'"


def test_a_missing_engine_is_not_awaited(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError) as caught:
        open_engine({"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "PATH": str(tmp_path)})
    assert caught.value.code == "no_docker"


def test_a_snap_and_an_engine_without_new_privileges_are_recognized_by_their_info() -> None:
    plain = Engine("", None, {"DockerRootDir": "/var/lib/docker", "SecurityOptions": ["name=seccomp"]})
    strict = Engine("", None, {"DockerRootDir": "/var/snap/docker/c", "SecurityOptions": ["name=no-new-privileges"]})
    assert (plain.confined, plain.forbids_new_privileges) == (False, False)
    assert (strict.confined, strict.forbids_new_privileges) == (True, True)
