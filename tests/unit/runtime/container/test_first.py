from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshray.runtime.container.first import first_command


def test_a_container_joins_once_and_comes_up_from_then_on() -> None:
    assert first_command(["join", "--ephemeral", "--", "--num-cpus=1"], enrolled=False) == [
        "join",
        "-",
        "--trust-user-environment",
        "--ephemeral",
        "--",
        "--num-cpus=1",
    ]
    assert first_command(["join"], enrolled=True) == ["up"]
    assert first_command(["init", "--name", "lab"], enrolled=False) == [
        "init",
        "--trust-user-environment",
        "--name",
        "lab",
    ]
    assert first_command([], enrolled=False) == []
    assert first_command([], enrolled=True) == ["up"]


def test_the_container_ends_with_the_exit_code_of_a_join_that_is_refused(tmp_path: Path) -> None:
    """The token reaches the join, and is in nobody's environment: a refused one names what it was not."""
    environ = {**os.environ, "MESHRAY_HOME": str(tmp_path / "home"), "MESHRAY_TOKEN": "no token at all"}
    done = subprocess.run(
        [sys.executable, "-m", "meshray.runtime.container.first", "join"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    assert done.returncode == 2
    assert "this is not a meshray token" in done.stderr


@pytest.mark.parametrize("there", [True, False])
def test_the_token_of_a_file_is_taken_too(tmp_path: Path, there: bool) -> None:
    file = tmp_path / "token"
    if there:
        file.write_text("no token at all")
    environ = {**os.environ, "MESHRAY_HOME": str(tmp_path / "home"), "MESHRAY_TOKEN_FILE": str(file)}
    done = subprocess.run(
        [sys.executable, "-m", "meshray.runtime.container.first", "join"],
        env={name: value for name, value in environ.items() if name != "MESHRAY_TOKEN"},
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    output = "this is not a meshray token" if there else f"MESHRAY_TOKEN_FILE: '{file}' cannot be read: No such file"
    assert (done.returncode, output in done.stderr) == (2, True)
