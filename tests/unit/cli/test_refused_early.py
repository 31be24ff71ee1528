"""Wrong arguments are refused before any change; a failing process leaves its last log lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.cli.bring_up import with_last_log_lines
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.address import Endpoint
from meshray.model.keys import MeshSecret
from meshray.node.enrolment import Enrolment
from tests.unit.cli.fakes import type_in
from tests.unit.cli.test_bring_up import TOKEN


@pytest.mark.parametrize("words", [("--ray", "/opt/ray"), ("--", "--num-cpus=2")])
def test_arguments_for_a_disabled_ray_are_refused(words: tuple[str, ...]) -> None:
    outcome = type_in("init", "--no-ray", *words)
    assert outcome.code == 2
    assert "no effect with --no-ray" in outcome.err


def test_an_invalid_service_kind_is_reported_before_any_change(tmp_path: Path) -> None:
    state = tmp_path / "state"
    outcome = type_in("init", "--no-ray", environ={"MESHRAY_SERVICE": "cron", "MESHRAY_HOME": str(state)})
    assert (outcome.code, state.exists()) == (2, False)
    assert "MESHRAY_SERVICE is 'cron'" in outcome.err


def test_a_failed_ephemeral_node_reports_its_last_log_lines(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "run")
    home.logs.mkdir(parents=True)
    (home.logs / "ray.log").write_text("first\nno room for the object store\n")
    enrolment = Enrolment(
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
        user_uid=0,
        ephemeral=True,
    )
    enrolment.save(home)
    answer = with_last_log_lines(MeshrayError("ray_failed", "Ray does not start", hint="meshray logs ray"), home)
    assert answer.hint == "meshray logs ray; ray.log: no room for the object store"
    replace(enrolment, ephemeral=False).save(home)
    assert with_last_log_lines(MeshrayError("x", "y", hint="z"), home).hint == "z"


@pytest.mark.parametrize("command", ["init", "join"])
def test_ports_of_a_node_without_root_cannot_be_exposed(tmp_path: Path, command: str) -> None:
    words = (command, *([TOKEN.encode()] if command == "join" else []), "--rootless", "--expose=8265")
    outcome = type_in(*words, environ={"MESHRAY_HOME": str(tmp_path / "state")})
    assert (outcome.code, "--expose opens ports" in outcome.err) == (2, True)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("command", ["init", "join"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--ray-user", "ana"), "ray_user_without_external"),
        (("--ray", "external", "--rootless"), "external_rootless"),
        (("--ray", "external", "--env", "EPOCHS=3"), "external_environment"),
        (("--ray", "external", "--ray-user", "no such user"), "no_such_user"),
        (("--ray", "external", "--", "--labels-file=/my files/labels"), "bad_external_argument"),
        (("--ray", "external", "--no-ray"), "no_ray_with_ray"),
    ],
)
def test_what_contradicts_a_ray_of_another_program_is_refused(
    tmp_path: Path, command: str, words: tuple[str, ...], code: str
) -> None:
    token = [TOKEN.encode()] if command == "join" else []
    outcome = type_in(command, *token, "--json", *words, environ={"MESHRAY_HOME": str(tmp_path / "state")})
    error = json.loads(outcome.out)["error"]
    assert (outcome.code, error["code"], bool(error["hint"])) == (2, code, True)
    assert not (tmp_path / "state").exists()
