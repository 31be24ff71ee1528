"""Every addition to the command line needs a decision about containers: each option of join, each command."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from meshray.cli import join_in_container as module
from meshray.cli.app import App
from meshray.cli.command_registry import INSIDE, SECTIONS
from meshray.cli.commands.join import join_command
from meshray.cli.container_options import ContainerChoice
from meshray.cli.join_request import JoinRequest
from meshray.cli.join_result import JoinResult
from tests.unit.cli.fakes import Outcome, type_in
from tests.unit.cli.test_bring_up import TOKEN

#: Option of `join` → its words on the command line, and those of the join in the container.
REACH_THE_CONTAINER: dict[str, tuple[list[str], list[str]]] = {
    "--name": (["--name", "red"], ["--name", "red"]),
    "--ray": (["--ray", "/opt/ray"], ["--ray", "/opt/ray"]),
    "--no-ray": (["--no-ray"], ["--no-ray"]),
    "--open": (["--open", "8000", "--open", "9000"], ["--open", "8000", "--open", "9000"]),
    "--no-remote": (["--no-remote"], ["--no-remote"]),
    "--unguarded": (["--unguarded"], ["--unguarded"]),
    "--expose": (["--expose", "8265", "--expose", "6379"], ["--expose", "8265", "--expose", "6379"]),
    "--ephemeral": (["--ephemeral"], ["--ephemeral"]),
    "--head": (["--head"], ["--head"]),
    "--endpoint": (["--endpoint", "192.0.2.9:4000"], ["--endpoint", "192.0.2.9:4000"]),
    "--port": (["--port", "4000"], ["--port", "4000"]),
    "--transport": (["--transport", "wss"], ["--transport", "wss"]),
    "--env": (["--env", "COLOUR=red"], ["--env", "COLOUR"]),
    "--label": (["--label", "zone=a"], ["--label", "zone=a"]),
}
#: Option of `join` → its words on the command line. The refusal names the option.
REFUSED: dict[str, list[str]] = {
    "--hub": ["--hub", "--endpoint", "192.0.2.9:4000"],
    "--ray-user": ["--ray", "external", "--ray-user", "0"],
    "--via": ["--via", "ssh://ana@head"],
    "--rootless": ["--rootless"],
}
#: Option of `join` → why the container's join does not get it.
KEPT_HERE: dict[str, str] = {
    "--runtime": "asks for the container",
    "--image": "is what the container is made from",
    "--bridge": "is the network of the container",
    "--volume": "is a folder of this machine in the container",
    "--block": "the command here waits for the container",
    "--json": "the container's join always answers in JSON, which is shown here as asked for",
    "--trust-user-environment": "is always said: the container is the boundary",
    "--env-file": "its variables arrive as --env, see the test",
}
#: Command → why it does not run in the container of this machine's node.
ANSWERED_HERE: dict[str, str] = {
    "init": "makes a mesh on this machine",
    "join": "makes the container, or brings it up",
    "up": "starts the container",
    "down": "stops the container",
    "leave": "removes the container",
    "restore": "makes this machine the head, and a head runs in no container of meshray's",
    "forward": "listens on the loopback of this machine; in the container only its processes would reach it",
    "completion": "is about the shell of this machine",
}


class Joined(Exception):
    """The container would be created now, with these arguments."""

    def __init__(self, words: list[str], environ: dict[str, str]) -> None:
        super().__init__(words)
        self.words, self.environ = words, environ


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Joined]:
    """Return the commands for containers, which are not created."""
    found: list[Joined] = []

    def substitute(app: App, request: JoinRequest, choice: ContainerChoice, block: bool) -> JoinResult:
        module._require_sense(request)
        found.append(Joined(module._join_arguments(request), dict(request.environment.chosen)))
        return JoinResult.read({})

    monkeypatch.setattr(module, "join_in_container", substitute)
    return found


def join(tmp_path: Path, *words: str) -> Outcome:
    return type_in(
        "join", TOKEN.encode(), "--runtime=docker", "--json", *words, environ={"MESHRAY_HOME": str(tmp_path / "state")}
    )


def options() -> set[str]:
    return {max(option.opts, key=len) for option in join_command.params if isinstance(option, click.Option)}


def test_every_option_of_join_is_classified() -> None:
    decided = [*REACH_THE_CONTAINER, *REFUSED, *KEPT_HERE]
    assert sorted(decided) == sorted(options()), "does it reach a join in a container? See _join_arguments"


@pytest.mark.parametrize(("typed", "expected"), REACH_THE_CONTAINER.values(), ids=REACH_THE_CONTAINER)
def test_an_option_reaches_the_join_in_the_container(
    tmp_path: Path, said: list[Joined], typed: list[str], expected: list[str]
) -> None:
    assert join(tmp_path, *typed).code == 0
    words = said[0].words
    assert any(words[place : place + len(expected)] == expected for place in range(len(words))), words


@pytest.mark.parametrize(("option", "typed"), REFUSED.items(), ids=REFUSED)
def test_an_option_that_a_container_cannot_have_is_refused_by_name(
    tmp_path: Path, said: list[Joined], option: str, typed: list[str]
) -> None:
    outcome = join(tmp_path, *typed)
    error = json.loads(outcome.out)["error"]
    assert outcome.code == 2
    assert option in f"{error['message']} {error['hint']}"
    assert not said


def test_an_environment_that_matches_is_refused_in_a_container(tmp_path: Path, said: list[Joined]) -> None:
    assert "--env" in json.loads(join(tmp_path, "--env", "match").out)["error"]["message"]
    assert not said


def test_a_ray_that_another_program_starts_is_refused_in_a_container(tmp_path: Path, said: list[Joined]) -> None:
    outcome = join(tmp_path, "--ray", "external")
    assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (2, "external_in_container")
    assert not said


def test_variables_of_a_file_and_words_for_ray_reach_the_container(tmp_path: Path, said: list[Joined]) -> None:
    file = tmp_path / "variables"
    file.write_text("COLOUR=red\n")
    assert join(tmp_path, "--env-file", str(file), "--", "--num-gpus=1").code == 0
    assert said[0].environ == {"COLOUR": "red"}
    assert "--trust-user-environment" in said[0].words
    assert said[0].words[-4:] == ["--env", "COLOUR", "--", "--num-gpus=1"]


def test_every_command_is_run_in_the_container_or_named_as_an_exception() -> None:
    commands = {name: command for section in SECTIONS.values() for name, command in section.items()}
    inside = [name for name, command in commands.items() if command.runs == INSIDE]
    assert sorted([*inside, *ANSWERED_HERE]) == sorted(commands), "why does it not run in the node's container?"
