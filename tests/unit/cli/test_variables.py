"""Each option of `init` and `join` can be set by a variable, and an error then names it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from meshray.cli import app as app_module
from meshray.cli.app import App
from meshray.cli.commands import init, join
from meshray.cli.main import cli
from meshray.cli.options import read_token
from meshray.cli.variables import VariableOption, names_for, without_variables
from meshray.errors import MeshrayError
from meshray.model.address import Endpoint
from meshray.model.token import Token
from tests.unit.cli.fakes import type_in

#: As for the whole command line: click keeps the help option that a command had first.
SETTINGS: dict[str, Any] = cli.context_settings  # type: ignore[assignment]
COMMANDS = [("init", init.init_command), ("join", join.join_command)]


def token(secret: str) -> str:
    return Token("0011223344556677", (Endpoint("192.0.2.1", 51888),), bytes(32), "1f2e3d4c", secret).encode()


TOKEN = token("a-secret")
NOWHERE = {"MESHRAY_HOME": "/nonexistent/meshray"}


def parsed(command: str, variables: dict[str, str], *words: str) -> dict[str, Any]:
    """Return the arguments with which the command would be called."""
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    context = found.make_context(
        command, list(words), obj=App((command, *words), environ=NOWHERE | variables), **SETTINGS
    )
    return context.params


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_every_option_but_json_has_a_variable_and_help_names_it(name: str, command: click.Command) -> None:
    options = [given for given in command.params if isinstance(given, click.Option)]
    assert [given.name for given in options if not isinstance(given, VariableOption)] == ["as_json"]
    help_text = "".join(command.get_help(click.Context(command, info_name=name, **SETTINGS)).split())
    for given in options:
        if isinstance(given, VariableOption):
            assert given.envvar == f"MESHRAY_{name}_{given.opts[0][2:]}".replace("-", "_").upper()
            assert f"[envvar:{given.envvar}" in help_text


def test_values_flags_and_words_come_from_variables() -> None:
    found = parsed(
        "join",
        {
            "MESHRAY_JOIN_NAME": "gpu-1",
            "MESHRAY_JOIN_NO_RAY": "1",
            "MESHRAY_JOIN_HEAD": "false",
            "MESHRAY_JOIN_PORT": "51999",
            "MESHRAY_JOIN_OPEN": "22 8443",
            "MESHRAY_JOIN_LABEL": "zone=lab 'note=two words'\ndisk=ssd",
            "MESHRAY_INIT_NAME": "not-this-command",
        },
    )
    assert (found["name"], found["no_ray"], found["head"], found["port"]) == ("gpu-1", True, False, 51999)
    assert found["open_to_members"] == ("22", "8443")
    assert found["label"] == ("zone=lab", "note=two words", "disk=ssd")
    assert parsed("init", {"MESHRAY_INIT_PATIENCE": "60"})["patience"] == 60


def test_the_command_line_wins() -> None:
    variables = {"MESHRAY_JOIN_NAME": "", "MESHRAY_JOIN_LABEL": "zone=lab"}
    found = parsed("join", variables, "--name", "gpu-2", "--label", "zone=home")
    assert (found["name"], found["label"]) == ("gpu-2", ("zone=home",))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MESHRAY_JOIN_NAME", "", "is empty"),
        ("MESHRAY_JOIN_NAME", "not_a_host!", "cannot be a node's name"),
        ("MESHRAY_JOIN_LABEL", "zone", "is not a label"),
        ("MESHRAY_JOIN_LABEL", "'zone=lab", "quotation mark"),
        ("MESHRAY_JOIN_HUB", "perhaps", "perhaps"),
        ("MESHRAY_JOIN_PORT", "many", "many"),
        ("MESHRAY_JOIN_TRANSPORT", "tcp", "tcp"),
        ("MESHRAY_JOIN_ENDPOINT", "vm", "is not HOST:PORT"),
        ("MESHRAY_JOIN_VIA", "head", "neither ssh"),
        ("MESHRAY_JOIN_IMAGE", "img", "need --runtime docker"),
        ("MESHRAY_JOIN_ENV", "1=2", "not the name of a variable"),
    ],
)
def test_a_wrong_value_is_the_options_own_error_and_names_the_variable(variable: str, value: str, said: str) -> None:
    # A valid token, so that the faulty options are reached.
    outcome = type_in("join", TOKEN, environ={**NOWHERE, variable: value})
    assert outcome.code == 2
    error, *_ = outcome.err.splitlines()
    assert said in error
    assert variable in error


def test_a_conflict_names_the_variable_that_set_the_option() -> None:
    variables = {"MESHRAY_JOIN_NO_RAY": "1", "MESHRAY_JOIN_NAME": "gpu-1"}
    outcome = type_in("join", "--ray", "/opt/ray", TOKEN, environ=NOWHERE | variables)
    assert outcome.code == 2
    assert "(from the environment: MESHRAY_JOIN_NO_RAY)" in outcome.err
    assert "MESHRAY_JOIN_NAME" not in outcome.err


def test_an_error_about_something_else_names_no_variable() -> None:
    variables = {"MESHRAY_INIT_NAME": "vm", "MESHRAY_INIT_NO_RAY": "1", "MESHRAY_SERVICE": "cron"}
    outcome = type_in("init", environ=NOWHERE | variables)
    assert (outcome.code, "from the environment" in outcome.err) == (2, False)


def test_a_mistyped_variable_gets_a_warning() -> None:
    outcome = type_in("init", "--no-ray", "--ray", "x", environ=NOWHERE | {"MESHRAY_INIT_NAEM": "vm"})
    assert "warning: MESHRAY_INIT_NAEM belongs to no option; did you mean MESHRAY_INIT_NAME?" in outcome.err


def test_the_token_comes_from_the_word_else_the_variable_else_the_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token("of-the-file") + "\n")
    both = {"MESHRAY_TOKEN": token("of-the-variable"), "MESHRAY_TOKEN_FILE": str(file)}
    assert read_token([token("typed")], App((), environ=both)).secret == "typed"
    assert read_token([], App((), environ=both)).secret == "of-the-variable"
    assert read_token([], App((), environ={"MESHRAY_TOKEN_FILE": str(file)})).secret == "of-the-file"
    assert read_token([f"@{file}"], App((), environ=both)).secret == "of-the-file"


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"MESHRAY_TOKEN": " "}, "MESHRAY_TOKEN"),
        ({"MESHRAY_TOKEN_FILE": ""}, "MESHRAY_TOKEN_FILE"),
        ({"MESHRAY_TOKEN_FILE": "/nonexistent/token"}, "MESHRAY_TOKEN_FILE"),
        ({"MESHRAY_TOKEN": "meshray1_c2VjcmV0"}, "MESHRAY_TOKEN"),
        ({}, "Missing argument 'TOKEN|-|@FILE'."),
    ],
)
def test_without_a_token_the_error_names_the_searched_places(variables: dict[str, str], named: str) -> None:
    with pytest.raises(MeshrayError) as caught:
        read_token([], App((), environ=variables))
    assert caught.value.message.endswith(f"(from the environment: {named})" if variables else named)
    assert "c2VjcmV0" not in caught.value.message


def test_the_sudo_line_keeps_variables_by_name_and_never_shows_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "program", lambda: ["/opt/bin/meshray"])
    environ = {"MESHRAY_TOKEN": "secret", "MESHRAY_JOIN_ENV": "KEY=secret", "MESHRAY_INIT_NAME": "vm"}
    line = App(("join", "--no-ray"), environ=environ, euid=1000).sudo_line()
    assert line == "sudo --preserve-env=MESHRAY_JOIN_ENV,MESHRAY_TOKEN /opt/bin/meshray join --no-ray"
    assert names_for("up", environ) == []


def test_started_processes_do_not_inherit_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from meshray.cli import bring_up
    from meshray.home import Home
    from meshray.runtime import agent_service

    started: list[dict[str, str]] = []

    def start(home: Home, environ: dict[str, str]) -> str:
        started.append(environ)
        return agent_service.BACKGROUND

    monkeypatch.setattr(agent_service, "start", start)
    monkeypatch.setattr(bring_up, "follow", lambda home, stage: {})
    secret = {"MESHRAY_TOKEN": "s", "MESHRAY_TOKEN_FILE": "f", "MESHRAY_JOIN_ENV": "K=s", "MESHRAY_INIT_ENV": "K=s"}
    app = App((), environ={**os.environ, **secret, "MESHRAY_WIREGUARD": "kernel"})
    bring_up.start_and_follow(app, Home(tmp_path, tmp_path))
    assert not secret.keys() & started[0].keys()
    assert started[0]["MESHRAY_WIREGUARD"] == "kernel"
    assert without_variables({"MESHRAY_JOINED": "x"}) == {"MESHRAY_JOINED": "x"}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("MESHRAY_INIT_", "MESHRAY_JOIN_", "MESHRAY_TOKEN"))]:
        monkeypatch.delenv(name)
    yield
