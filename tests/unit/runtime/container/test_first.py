from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from meshray.home import Home
from meshray.model.address import Endpoint
from meshray.model.keys import MeshSecret
from meshray.node.enrolment import Enrolment
from meshray.runtime.container.first import first_command, new_token_hint


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


def join_with(environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the first process of a container that joins, to its end."""
    command = [sys.executable, "-m", "meshray.runtime.container.first", "join"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=15)


def test_the_container_ends_with_the_exit_code_of_a_join_that_is_refused(tmp_path: Path) -> None:
    """The token reaches the join, and is in nobody's environment: a refused one names what it was not."""
    environ = {**os.environ, "MESHRAY_HOME": str(tmp_path / "home"), "MESHRAY_TOKEN": "no token at all"}
    done = join_with(environ)
    assert done.returncode == 2
    assert "this is not a meshray token" in done.stderr


@pytest.mark.parametrize("there", [True, False])
def test_the_token_of_a_file_is_taken_too(tmp_path: Path, there: bool) -> None:
    file = tmp_path / "token"
    if there:
        file.write_text("no token at all")
    environ = {**os.environ, "MESHRAY_HOME": str(tmp_path / "home"), "MESHRAY_TOKEN_FILE": str(file)}
    done = join_with({name: value for name, value in environ.items() if name != "MESHRAY_TOKEN"})
    output = "this is not a meshray token" if there else f"MESHRAY_TOKEN_FILE: '{file}' cannot be read: No such file"
    assert (done.returncode, output in done.stderr) == (2, True)


def test_in_kubernetes_a_missing_token_is_explained_with_the_secret(tmp_path: Path) -> None:
    file = tmp_path / "meshray-token" / "token"
    environ = {**os.environ, "MESHRAY_HOME": str(tmp_path / "home"), "MESHRAY_TOKEN_FILE": str(file)}
    done = join_with({**environ, "KUBERNETES_SERVICE_HOST": "10.96.0.1"})
    assert done.returncode == 2
    assert "the Secret meshray-token needs a token of the mesh under the key token" in done.stderr
    assert "kubectl create secret generic meshray-token --from-file=token" in done.stderr


@pytest.mark.parametrize(("options", "role"), [([], ""), (["--head", "--ray=external"], " --head")])
def test_the_hint_names_a_token_with_which_this_node_may_join(options: list[str], role: str) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
    hint = new_token_hint("/run/secrets/meshray-token/token", ["join", "-", *options], environ)
    # A shell's default lets every user of that machine read the file.
    assert f"umask 077; sudo meshray token create --uses 0 --ephemeral{role} > token; then" in hint


def test_an_ephemeral_node_that_was_removed_joins_again(tmp_path: Path) -> None:
    """The new join fails without a token; what counts is that the old enrolment is gone before it."""
    home = Home(tmp_path / "home", tmp_path / "run")
    home.state.mkdir(mode=0o700)
    Enrolment(
        mesh_id="ab",
        node_id="n1",
        name="one",
        credential="c",
        coordinators=(Endpoint("127.0.0.1", 1),),
        fingerprint="00" * 32,
        mesh_secret=MeshSecret.generate(),
        ray_token="t",
        mesh_port=51888,
        listen_port=0,
        user_uid=os.geteuid(),
        ephemeral=True,
        taken_out=True,
    ).save(home)
    environ = {**os.environ, "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run), "MESHRAY_TOKEN": "none"}
    done = subprocess.run(
        [sys.executable, "-m", "meshray.runtime.container.first", "join"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2, done.stderr
    assert "this is not a meshray token" in done.stderr
    assert not home.enrolment.exists()
