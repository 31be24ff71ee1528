"""With sudo the session's environment is the one with which sudo was started."""

from __future__ import annotations

from pathlib import Path

from meshray.runtime.session import session_environment

#: The variables that sudo gives to its command, with one that was named on sudo's command line.
GIVEN = {
    "SUDO_UID": "1000",
    "SUDO_USER": "ada",
    "HOME": "/root",
    "PATH": "/usr/sbin:/usr/bin",
    "USER": "root",
    "RAY_x": "named",
}


def process(proc: Path, pid: int, name: str, parent: int, **environ: str) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} {pid} {pid} 0 -1")
    (folder / "environ").write_bytes(b"".join(f"{key}={value}\0".encode() for key, value in environ.items()))


def test_the_user_is_that_of_sudo(tmp_path: Path) -> None:
    process(tmp_path, 7, "meshray", 6)
    process(tmp_path, 6, "sudo", 5, PATH="/home/ada/bin:/usr/bin", HF_HOME="/data", HOME="/home/ada", RAY_x="older")
    process(tmp_path, 5, "sudo", 4, PATH="/home/ada/bin:/usr/bin", HF_HOME="/data")
    process(tmp_path, 4, "bash", 1)
    found = session_environment(GIVEN, tmp_path, 7)
    assert found["PATH"] == "/home/ada/bin:/usr/bin"
    assert found["HF_HOME"] == "/data"
    assert found["HOME"] == "/home/ada"
    assert found["RAY_x"] == "named"


def test_a_root_shell_that_sudo_made_counts_as_well(tmp_path: Path) -> None:
    process(tmp_path, 9, "meshray", 8)
    process(tmp_path, 8, "my) sh (x", 7)
    process(tmp_path, 7, "sudo", 1, HF_HOME="/data")
    assert session_environment(GIVEN, tmp_path, 9)["HF_HOME"] == "/data"


def test_without_sudo_it_is_the_process_owner(tmp_path: Path) -> None:
    process(tmp_path, 7, "meshray", 6)
    process(tmp_path, 6, "sudo", 1, HF_HOME="/data")
    environ = {"HF_HOME": "/mine"}
    assert session_environment(environ, tmp_path, 7) == environ


def test_without_sudo_variables_the_user_is_the_process_owner(tmp_path: Path) -> None:
    process(tmp_path, 7, "meshray", 1)
    assert session_environment(GIVEN, tmp_path, 7) == GIVEN
    assert session_environment(GIVEN, tmp_path / "nothing", 7) == GIVEN
