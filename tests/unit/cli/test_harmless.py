"""No report of another node reaches a terminal as a command."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import logging
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshray.cli import envelope, output
from meshray.cli.app import App
from meshray.cli.commands.env import EnvResult
from meshray.cli.commands.node_orders import NodeLogsResult
from meshray.cli.commands.peer import PeerResult
from meshray.cli.file_result import FileResult
from meshray.cli.progress import LiveProgress, PlainProgress
from meshray.cli.result import Result
from meshray.coordinator.node_faults import reported_detail
from meshray.errors import MeshrayError
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import PublicKey
from meshray.model.node import HUB, Node, Versions
from meshray.model.printable import escaped, escaped_lines, printable
from meshray.model.problem import Problem
from meshray.protocol.codec import to_json
from meshray.runtime.log_format import LogFormatter
from tests.unit.agent.sample import WORKER_A

from .examples import BY_COMMAND
from .fakes import FakeAgent, Terminal, type_in

#: Clears the screen, sets the title, answers in place of the user, begins a forged line, changes the text direction;
#: and CSI as one character.
EVIL = "\x1b[2J\x1b]0;t\x07\x1bP$q\x1b\\\r\nproblem: forged\x9b1A\x7f\u202e\u2028x\x00"
CLI = Path(output.__file__).parent


def poisoned(value: Any) -> Any:
    """Return the value with EVIL at the end of each of its texts."""
    if isinstance(value, str):
        return value if isinstance(value, Enum) else value + EVIL
    if isinstance(value, msgspec.Struct):
        return type(value)(**{name: poisoned(getattr(value, name)) for name in value.__struct_fields__})
    if isinstance(value, Problem):
        return Problem(*(poisoned(getattr(value, item.name)) for item in dataclasses.fields(value)))
    if isinstance(value, Mapping):
        return {poisoned(key) if key not in KEYS else key: poisoned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(poisoned(item) for item in value)
    return value


def keys_of(value: Any) -> set[str]:
    if isinstance(value, msgspec.Struct):
        own = set(value.__struct_encode_fields__)
        return own | {key for name in value.__struct_fields__ for key in keys_of(getattr(value, name))}
    if isinstance(value, Problem):
        return {item.name for item in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return {key for item in value for key in keys_of(item)}
    return set()


#: Names of fields; those of labels and the like are chosen by other nodes.
KEYS = {key for result in BY_COMMAND.values() for key in keys_of(result.answer)}


def evil_in(shown: str) -> set[str]:
    return {letter for letter in shown if not letter.isprintable() and letter != "\n"}


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(("command", "result"), BY_COMMAND.items())
def test_no_answer_moves_a_cursor_or_forges_a_line(command: str, result: Result[Any], terminal: bool) -> None:
    if isinstance(result, EnvResult):
        pytest.skip("quoted for the shell, and of this node only")
    evil = dataclasses.replace(
        result,
        **{field.name: poisoned(getattr(result, field.name)) for field in dataclasses.fields(result)},
    )
    out = Terminal() if terminal else io.StringIO()
    output.show(App((command,), stdout=out, environ={"NO_COLOR": "1"}), evil)
    assert evil_in(out.getvalue()) <= {"\t"}
    if not isinstance(result, (FileResult, NodeLogsResult, PeerResult)):
        assert not [line for line in out.getvalue().splitlines() if line.startswith("problem: forged")]


@pytest.mark.parametrize(("command", "result"), BY_COMMAND.items())
def test_json_is_harmless_and_has_the_same_content(command: str, result: Result[Any]) -> None:
    value = {"schema": 1, **poisoned(result.to_json())}
    line = envelope.dumps(value)
    assert evil_in(line) == set()
    assert "\n" not in line
    assert json.loads(line) == json.loads(json.dumps(value))
    assert "é" in envelope.dumps({"city": "Orléans"})


def test_errors_warnings_notes_and_stages_are_one_line_each() -> None:
    err = io.StringIO()
    app = App((), stderr=err)
    output.show_error(app, MeshrayError("x", "message" + EVIL, hint="hint" + EVIL))
    app.warn("warning" + EVIL)
    app.note("note" + EVIL)
    PlainProgress(err).stage("name" + EVIL, "ok", "detail" + EVIL)
    assert evil_in(err.getvalue()) == set()
    assert len(err.getvalue().splitlines()) == 5


def test_live_progress_shows_no_foreign_control_character() -> None:
    err = io.StringIO()
    with LiveProgress(err) as progress:
        progress.stage("name", "ok", "detail" + EVIL)
    assert "\x1b[2J" not in err.getvalue()
    assert "\x1b]" not in err.getvalue()


def test_log_lines_hold_their_line(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("x").exception("node %s", EVIL)
    shown = LogFormatter().format(caplog.records[-1])
    assert evil_in(shown) == set()
    assert not [line for line in shown.splitlines() if line.startswith("problem: forged") and "Traceback" not in shown]
    assert len([line for line in shown.splitlines() if line.startswith("20")]) == 1


@pytest.mark.parametrize("follow", [False, True])
def test_logs_are_shown_without_their_control_characters(tmp_path: Path, follow: bool) -> None:
    logs = tmp_path / "log"
    logs.mkdir(parents=True)
    (logs / "ray.log").write_text("\x1b[31mred\x1b[0m\n" + EVIL + "\n")
    environ = {"MESHRAY_HOME": str(tmp_path), "MESHRAY_RUN": str(tmp_path)}
    if follow:
        fake = tmp_path / "bin" / "tail"
        fake.parent.mkdir()
        fake.write_text('#!/bin/sh\nfor last; do :; done\nexec cat "$last"\n')
        fake.chmod(0o755)
        outcome = type_in("logs", "ray", "-f", environ={**environ, "PATH": f"{fake.parent}:/bin"}, agent=FakeAgent())
    else:
        outcome = type_in("logs", "ray", environ=environ, agent=FakeAgent())
    assert outcome.code == 0
    assert outcome.out.startswith("red\n")
    assert evil_in(outcome.out) == set()


def test_the_coordinator_takes_no_control_characters_into_the_map() -> None:
    assert Versions.from_json({"ray": "2.60" + EVIL}).ray.isprintable()
    node = Node.from_json({**to_json(WORKER_A.form()), "labels": {"a" + EVIL: EVIL}, "faults": {"x": EVIL}})
    request = {
        "mesh_id": "m", "token_id": "t", "secret": "s", "name": "n", "public_key": str(PublicKey(bytes(32))),
        "labels": {"a" + EVIL: "b" + EVIL},
    }  # fmt: skip
    asked = EnrolRequest.from_json(request)
    for texts in (node.labels, node.faults, asked.labels):
        assert all(key.isprintable() and item.isprintable() for key, item in texts.items())
    hub = dataclasses.replace(WORKER_A, roles=frozenset({HUB}))
    assert reported_detail(hub, {"hub_forwards": EVIL}).isprintable()


def test_what_is_escaped() -> None:
    assert escaped("2.60.0 – Orléans 東京") == "2.60.0 – Orléans 東京"
    assert escaped("a\x1b[2J\n\u202e\ud800") == "a\\x1b[2J\\n\\u202e\\ud800"
    assert escaped_lines("\x1b[1;31mred\x1b[0m\n\tb\r") == "red\n\tb\\r"
    assert printable("a\x1b[2Jb") == "a[2Jb"


#: Each of them writes to the terminal through `meshray.model.printable`, or only text of click or meshray itself.
WRITERS = {
    "app.py",
    "entry.py",
    "main.py",
    "options.py",
    "output.py",
    "progress.py",
    "reference.py",
    "logs.py",
    "node_orders.py",
}


def test_nothing_else_of_the_command_line_writes_to_a_terminal() -> None:
    found = set()
    for file in CLI.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in {"print", "click.echo", "click.secho"} or called.endswith(("stdout.write", "stderr.write")):
                found.add(file.name)
    assert found <= WRITERS
