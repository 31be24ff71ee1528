"""`meshray node add --from` and a machine where another meshray command runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from meshray.cli import remote_join, remote_joins
from meshray.cli.join_result import JoinResult
from meshray.errors import MeshrayError, UnreachableError
from meshray.protocol.answers import EXAMPLES
from meshray.protocol.codec import to_json
from meshray.runtime.ssh import SshTarget
from tests.unit.cli.fakes import FakeAgent, type_in


def test_a_machine_is_tried_again_while_another_command_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: Counter[str] = Counter()

    def add_node(app: object, target: SshTarget, *words: object, **more: object) -> JoinResult:
        attempts[target.host] += 1
        if target.host == "busy" or attempts[target.host] < 3:
            raise MeshrayError("busy", "another meshray command is changing this node", hint="wait until it has ended")
        return JoinResult.read(to_json(EXAMPLES["join"]))

    monkeypatch.setattr(remote_join, "add_node", add_node)
    monkeypatch.setattr(remote_joins, "_BUSY_S", (0.0, 0.0, 0.0))
    file = tmp_path / "hosts.ini"
    file.write_text("[worker]\ngpu-1\nbusy\n")
    added = type_in("node", "add", "--json", "--from", str(file), agent=FakeAgent({"api": {"tokens": []}}))
    results = {machine["machine"]: machine["done"] for machine in json.loads(added.out)["machines"]}
    assert (added.code, results) == (1, {"gpu-1": "added", "busy": "failed"})
    assert attempts == {"gpu-1": 3, "busy": 4}
    assert "gpu-1: … waits for the other meshray command there to end\n" in added.err


def test_a_machine_whose_coordinator_did_not_answer_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: Counter[str] = Counter()

    def add_node(app: object, target: SshTarget, *words: object, **more: object) -> JoinResult:
        attempts[target.host] += 1
        if target.host == "locked":
            raise UnreachableError("ssh_failed", "ssh to locked failed: Permission denied")
        if target.host == "silent" or attempts[target.host] < 2:
            raise UnreachableError("coordinator_unreachable", "the coordinator does not answer")
        return JoinResult.read(to_json(EXAMPLES["join"]))

    monkeypatch.setattr(remote_join, "add_node", add_node)
    monkeypatch.setattr(remote_joins, "_UNANSWERED_S", (0.0,))
    file = tmp_path / "hosts.ini"
    file.write_text("[worker]\ngpu-1\nsilent\nlocked\n")
    added = type_in("node", "add", "--json", "--from", str(file), agent=FakeAgent({"api": {"tokens": []}}))
    results = {machine["machine"]: machine["done"] for machine in json.loads(added.out)["machines"]}
    assert (added.code, results) == (1, {"gpu-1": "added", "silent": "failed", "locked": "failed"})
    assert attempts == {"gpu-1": 2, "silent": 2, "locked": 1}
    assert "gpu-1: … tries once more: the coordinator does not answer\n" in added.err
