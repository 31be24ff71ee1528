"""The fields of every answer, on which scripts rely."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import pytest

from meshray.cli import envelope
from meshray.cli.main import cli
from meshray.cli.result import Result
from meshray.errors import MeshrayError
from meshray.protocol.answers import EXAMPLES, Doctor
from meshray.protocol.codec import to_json

from .examples import BY_COMMAND

#: New fields are allowed; a changed or removed one needs a new schema number.
FIELDS = {
    "init": {"token", "mesh", "node", "ray_address", "dashboard", "port", "endpoints", "open_commands", "already"},
    "join": {"mesh", "node", "path", "ray", "ray_address", "dashboard"},
    "up": {"mesh", "node", "path", "ray", "ray_address", "dashboard"},
    "down": {"node", "was_running"},
    "leave": {"node", "unenrolled"},
    "status": {"mesh", "revision", "self", "coordinator", "nodes", "totals", "problems", "health"}
    | {"open", "exposed", "unguarded", "no_remote", "environment", "notices"},
    "ready": {"ready", "reason"},
    "doctor": {"healthy", "self", "checks", "repaired"},
    "ping": {"node", "sent", "received", "rtts_ms", "path", "others"},
    "forward": {"address", "host", "port", "node", "node_port"},
    "token create": {"token", "id", "uses", "expires", "roles", "name", "replace"},
    "token list": {"tokens"},
    "token revoke": {"id", "revoked"},
    "web invite": {"id", "name", "port", "url", "level", "expires", "fingerprint"},
    "web list": {"passes"},
    "web revoke": {"id", "name", "revoked"},
    "web open": {"url", "level", "expires", "fingerprint"},
    "node add": {"mesh", "node", "path", "ray", "ray_address", "dashboard"},
    "node add --from": {"machines", "added", "already", "failed"},
    "node list": {"nodes", "restored"},
    "node rm": {"node", "done", "secrets"},
    "secrets rotate": {"epoch", "started", "away", "static", "too_old"},
    "node rotate-key": {"node", "done", "public_key"},
    "node rename": {"node", "done", "name"},
    "node drain": {"node", "done", "ray_node_id", "deadline_s"},
    "node logs": {"node", "part", "text"},
    "node restart": {"node", "done"},
    "node bundle": {"node", "bundle", "size"},
    "node upgrade": {"version", "build", "nodes"},
    "audit": {"records", "total", "newest", "intact", "broken"},
    "backup": {"file", "size", "mesh", "node", "created"},
    "restore": {"mesh", "node", "ray_address", "created", "endpoints", "nodes"},
    "peer add": {"name", "ip", "config", "text"},
    "dashboard": {"url", "token", "ssh", "ports"},
    "env": {"env", "programs"},
    "env lock": {"ray", "python", "requirements", "left_out"},
    "completion": {"kind", "text"},
    "render wireguard": {"kind", "text"},
    "render systemd": {"kind", "text"},
    "render slurm": {"kind", "text"},
    "render prometheus": {"kind", "text"},
    "render alerts": {"kind", "text"},
    "render grafana": {"kind", "text"},
    "render kubernetes": {"kind", "text"},
    "render kuberay": {"kind", "text"},
    "render ansible": {"kind", "text"},
    "render cloud-init": {"kind", "text"},
    "logs": {"kind", "text"},
}

#: Options with an answer of their own.
OPTIONS = {"node add --from"}


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} ")
        # `meshray env` also answers without an agent.
        if not isinstance(command, click.Group) or command.params:
            yield prefix + name, command


def test_the_envelope() -> None:
    assert envelope.answer({"mesh": "lab", "schema": 7}) == {"schema": 1, "mesh": "lab"}
    error = MeshrayError("code", "message", hint="hint")
    assert envelope.failure(error) == {"schema": 1, "error": {"code": "code", "message": "message", "hint": "hint"}}


@pytest.mark.parametrize(("command", "result"), BY_COMMAND.items())
def test_every_answer_keeps_its_fields(command: str, result: Result[Any]) -> None:
    line = envelope.dumps(envelope.answer(result.to_json()))
    assert "\n" not in line
    assert json.loads(line).keys() == FIELDS[command] | {"schema"}


@pytest.mark.parametrize(("command", "result"), BY_COMMAND.items())
def test_every_answer_is_readable(command: str, result: Result[Any]) -> None:
    assert result.text().strip()


def test_every_command_that_answers_has_json_and_an_example() -> None:
    found = dict(commands(cli))
    for name, command in found.items():
        has_json = any("--json" in parameter.opts for parameter in command.params)
        assert has_json == (name != "run"), name
    assert (found.keys() - {"run"}) | OPTIONS == BY_COMMAND.keys() == FIELDS.keys()
    for name, option in (answer.rsplit(" ", 1) for answer in OPTIONS):
        assert any(option in parameter.opts for parameter in found[name].params)


def test_every_kind_of_result_is_among_the_examples() -> None:
    assert {type(result) for result in BY_COMMAND.values()} == set(Result.__subclasses__())


def test_nested_fields_of_the_design() -> None:
    init = BY_COMMAND["init"].to_json()
    assert init["node"] == {"name": "lab", "ip": "10.99.0.1"}
    status = BY_COMMAND["status"].to_json()
    assert status["coordinator"] == {"reachable": True}
    doctor = EXAMPLES["doctor"]
    assert isinstance(doctor, Doctor)
    assert {"code", "title", "status", "node", "evidence", "fix"} <= to_json(doctor.checks[0]).keys()
