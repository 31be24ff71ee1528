"""One place catches all errors: one line, a hint, the right exit code, JSON if requested."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

from meshray.cli import app as app_module
from meshray.cli import main
from meshray.cli.app import App
from meshray.cli.command_registry import SECTIONS
from meshray.errors import MeshrayError, RefusedError
from meshray.home import Home
from meshray.protocol.control import Request
from tests.unit.cli.fakes import A, FakeAgent, type_in


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["join"],
        ["init", "--port", "0"],
        ["init", "--port", "many"],
        ["init", "--network", "10.99.0.0/33"],
        ["init", "--network", "8.8.0.0/16"],
        ["init", "--name", "not_a_host!"],
        ["init", "--advertise", "10.0.0.300"],
        ["init", "stray"],
        ["init", "--", "--address=10.0.0.1:6379"],
        ["join", "hello"],
        ["join", "@/nonexistent/token"],
        ["token", "create", "--ttl", "soon"],
        ["token", "revoke", "a/b"],
        ["node", "rm", "../tokens"],
        ["logs", "kernel"],
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    outcome = type_in(*arguments)
    assert outcome.code == 2
    error, hint = outcome.err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert outcome.out == ""
    assert outcome.agent.asked == []


def test_wrong_input_in_json() -> None:
    outcome = type_in("status", "--json", "--nonsense")
    answer = json.loads(outcome.out)
    assert answer.keys() == {"schema", "error"}
    assert answer["schema"] == 1
    assert answer["error"].keys() == {"code", "message", "hint"}
    assert answer["error"]["code"] == "usage"


def test_arguments_after_the_dashes_are_not_ours() -> None:
    assert not main.app_for(["join", "TOKEN", "--", "--json"]).as_json
    assert not main.app_for(["run", "jq", "--json"]).as_json
    assert main.app_for(["join", "--json", "TOKEN", "--", "--num-cpus=1"]).as_json


def test_an_agent_error_keeps_its_exit_code() -> None:
    refused = RefusedError("not_admin", "only the head may do that", hint="run it on head")
    outcome = type_in("token", "list", "--json", agent=FakeAgent({"api": refused}))
    assert outcome.code == 4
    assert json.loads(outcome.out)["error"]["code"] == "not_admin"
    assert "only the head may do that" in outcome.err


def test_no_agent_is_exit_code_5_and_reports_that_there_is_no_mesh() -> None:
    outcome = type_in("status")
    assert outcome.code == 5
    assert "not in a mesh" in outcome.err


def test_an_unexpected_exception_is_one_line_and_names_the_log(tmp_path: Path) -> None:
    class Broken(FakeAgent):
        def request_json(self, request: Request[A], *, timeout_s: float = 10) -> Mapping[str, object]:
            raise ZeroDivisionError("a bug\nof two lines")

    outcome = type_in("status", agent=Broken(), environ={"MESHRAY_HOME": str(tmp_path)})
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith(f"error: unexpected ZeroDivisionError: a bug (details in {tmp_path}/log/cli.log)")
    assert "ZeroDivisionError" in (tmp_path / "log/cli.log").read_text()
    debug = {"MESHRAY_HOME": str(tmp_path), "MESHRAY_DEBUG": "1"}
    assert "Traceback" in type_in("status", agent=Broken(), environ=debug).err


def test_an_unexpected_error_creates_no_log_folder_without_state(tmp_path: Path) -> None:
    error = main.as_error(ValueError("x"), App((), environ={"MESHRAY_HOME": str(tmp_path / "none")}))
    assert error.code == "unexpected"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("caught", [KeyboardInterrupt(), click.Abort()])
def test_interruption_is_130(caught: BaseException) -> None:
    assert main.as_error(caught, App(())).exit_code == 130


def test_a_closed_file_gives_the_sudo_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "program", lambda: ["/opt/my venv/bin/meshray"])
    error = main.as_error(PermissionError(13, "denied", "/var/lib/meshray"), App(("logs",), environ={}, euid=1000))
    assert (error.code, error.hint) == ("not_root", "sudo '/opt/my venv/bin/meshray' logs")
    error = main.as_error(OSError(28, "No space left on device", "/var/lib/meshray/node.json"), App((), euid=0))
    assert error.message == "/var/lib/meshray/node.json: No space left on device"


def test_the_sudo_line_keeps_settings_and_hides_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "program", lambda: ["/opt/bin/meshray"])
    environ = {"MESHRAY_HOME": "/srv/mesh", "RAY_ADDRESS": "x"}
    outcome = type_in("join", "--no-ray", "meshray1_c2VjcmV0", environ=environ, euid=1000)
    assert outcome.code == 4  # A damaged token is detected before root is required.
    app = App(("join", "--no-ray", "meshray1_c2VjcmV0"), environ=environ, euid=1000)
    assert app.sudo_line() == "sudo env MESHRAY_HOME=/srv/mesh /opt/bin/meshray join --no-ray TOKEN"
    with pytest.raises(MeshrayError, match="not root"):
        app.require_root()


def test_a_state_folder_with_files_of_others_is_answered_with_another_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(app_module, "program", lambda: ["/opt/bin/meshray"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    data, taken = tmp_path / "data", tmp_path / "taken"
    taken.mkdir()
    (taken / "photo.jpg").touch()
    environ = {"MESHRAY_HOME": str(taken), "MESHRAY_SERVICE": "background", "XDG_DATA_HOME": str(data)}

    def hint(**more: str) -> str:
        outcome = type_in("init", "--no-ray", environ=environ | more, euid=1000)
        assert (outcome.code, "photo.jpg" in outcome.err) == (1, True)
        return outcome.err.splitlines()[-1]

    assert hint() == "hint: env -u MESHRAY_HOME /opt/bin/meshray init --no-ray"
    assert hint(SUDO_UID="1000") == "hint: sudo /opt/bin/meshray init --no-ray"
    (data / "meshray").mkdir(parents=True)
    (data / "meshray" / "node.json").touch()  # The default folder has a node.
    assert hint() == f"hint: env MESHRAY_HOME={taken}/meshray /opt/bin/meshray init --no-ray"
    (data / "meshray" / "node.json").rename(data / "meshray" / "photo.jpg")
    del environ["MESHRAY_HOME"]
    assert hint() == f"hint: env MESHRAY_HOME={data}/meshray-2 /opt/bin/meshray init --no-ray"


def test_commands_that_change_the_machine_require_root_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An ordinary user cannot read which node it is; the folder shows that there may be one.
    for folder, output in ((tmp_path, "hint: sudo "), (tmp_path / "none", "not in a mesh\nhint: ")):
        monkeypatch.setattr("meshray.cli.app.SYSTEM_HOME", Home(folder, tmp_path / "run"))
        for command in ("up", "down", "leave"):
            outcome = type_in(command, euid=1000)
            assert outcome.code == 1
            assert output in outcome.err
            assert outcome.err.count("\n") == 2


def test_help_begins_with_what_a_new_user_needs_each_in_one_line_of_80(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main.run(App(("--help",))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    commands = lines[lines.index("First steps:") :]
    assert [line for line in commands if line.endswith(":")] == [f"{title}:" for title in SECTIONS]
    assert [line.split()[0] for line in commands[1:7]] == ["init", "join", "status", "run", "dashboard", "doctor"]
    listed = [line for line in commands if line.startswith("  ")]
    assert [line.split()[0] for line in listed] == [name for section in SECTIONS.values() for name in section]
    assert {line[12:14].strip() for line in listed} == {""}, "the columns of all sections are one"


def test_help_imports_no_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    assert main.run(App(("--help",))) == 0
    help_text = capsys.readouterr().out
    assert all(name in help_text for section in SECTIONS.values() for name in section)


def test_every_command_has_help_with_an_example() -> None:
    context = click.Context(main.cli, info_name="meshray", **main.cli.context_settings)
    for name in main.cli.list_commands(context):
        command = main.cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
        if not isinstance(command, click.Group):
            assert "Example" in command.help


def test_a_quick_command_does_not_import_these_modules() -> None:
    """`meshray --help` and `meshray status` start within a quarter of a second."""
    script = (
        "import sys; from meshray.cli import main; main.main(['status', '--json']); "
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    environ = {"PATH": os.environ.get("PATH", ""), "MESHRAY_HOME": "/nonexistent/meshray"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=True)
    heavy = {"aiohttp", "asyncio", "cryptography", "docker", "jinja2", "pyroute2", "ray", "rich", "wgconfig", "yaml"}
    imported = set(ast.literal_eval(done.stderr.splitlines()[-1]))
    assert "click" in imported
    assert imported & heavy == set()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("staus", "status"), ("nodes", "node list"), ("drain", "node drain"), ("help", "--help"), ("stat", "status")],
)
def test_a_mistyped_command_gets_the_intended_one_suggested(typed: str, meant: str) -> None:
    outcome = type_in(typed)
    assert outcome.code == 2
    assert f"did you mean: meshray {meant}" in outcome.err
    assert "did you mean" not in type_in("xyzzy").err


@pytest.mark.parametrize(
    ("typed", "meant"), [("node remove", "node rm"), ("token rm", "token revoke"), ("token lst", "token list")]
)
def test_a_mistyped_verb_gets_the_intended_one_suggested(typed: str, meant: str) -> None:
    outcome = type_in(*typed.split(), "x")
    assert outcome.code == 2
    assert f"there is no command {typed!r}; did you mean: meshray {meant}" in outcome.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_learns_to_complete(shell: str) -> None:
    assert "_MESHRAY_COMPLETE" in type_in("completion", shell).out


def test_node_names_are_completed() -> None:
    from meshray.cli.complete import node_names
    from tests.unit.cli.fakes import FakeAgent, FakeApp

    app = FakeApp(())
    object.__setattr__(app, "agent", FakeAgent({"status": {"nodes": [{"name": "gpu-1"}, {"name": "head"}]}}))
    context = click.Context(main.cli, obj=app, **main.cli.context_settings)
    assert node_names(context, click.Argument(["node"]), "g") == ["gpu-1"]
    object.__setattr__(app, "agent", FakeAgent())
    assert node_names(context, click.Argument(["node"]), "g") == []
