"""`node drain --when idle`: when a node counts as idle. tests/lab/test_dead_nodes.py shows it with a real Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from meshray.cli import idle_wait, ray_program
from meshray.cli.app import App
from meshray.cli.idle_wait import wait_until_idle
from meshray.cli.ray_program import FoundRay
from meshray.errors import MeshrayError
from meshray.linux.user import User
from meshray.protocol.status import NodeStatus, RayStatus, Status
from tests.unit.cli.fakes import type_in


@dataclass
class FakeRay:
    """Ray's own list of the node's tasks: a number for each time that it is asked."""

    numbers: list[int]

    def running_tasks(self) -> int:
        return self.numbers.pop(0)


@dataclass
class Statuses:
    """The head's agent: a status for each time that it is asked."""

    used: list[dict[str, float] | None]
    asked: int = field(default=0)

    def request(self, request: object, *, timeout_s: float = 10) -> Status:
        self.asked += 1
        ray = RayStatus(alive=True, used=self.used.pop(0))
        return Status(nodes=(NodeStatus("head", ray=RayStatus(True, used={"CPU": 8.0})), NodeStatus("gpu-1", ray=ray)))


def waited(monkeypatch: pytest.MonkeyPatch, agent: Statuses, ray: FakeRay) -> float:
    monkeypatch.setattr(idle_wait, "_POLL_S", 0.0)
    monkeypatch.setattr(App, "control", lambda self: agent)
    return wait_until_idle(App(()), cast("FoundRay", ray), "gpu-1")


def test_resources_in_use_are_waited_for_and_then_the_tasks_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Statuses([{"CPU": 1.0, "GPU": 0.0}, {"CPU": 0.0, "GPU": 0.5}, {"CPU": 0.0}, None, {"memory": 1e9}])
    assert waited(monkeypatch, agent, FakeRay([2, 1, 0])) >= 0
    assert agent.asked == 5


def test_a_list_of_tasks_that_cannot_be_read_is_not_an_idle_node(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FoundRay(("ray",), {}, User.by_uid(0), "3f5c")
    answers: dict[str, Any] = {"[]": 0, "No resource in the cluster": 0, json.dumps([{"name": "work"}] * 3): 3}
    for text, number in answers.items():
        monkeypatch.setattr(ray_program, "_run", lambda *arguments, text=text: f"{text}\n")
        assert ray.running_tasks() == number
    monkeypatch.setattr(ray_program, "_run", lambda *arguments: "no such column")
    with pytest.raises(MeshrayError) as failed:
        ray.running_tasks()
    assert failed.value.code == "ray_failed"


def test_undo_does_not_wait(tmp_path: Path) -> None:
    done = type_in("node", "drain", "gpu-1", "--undo", "--when", "idle", "--json")
    assert (done.code, json.loads(done.out)["error"]["code"]) == (2, "undo_when")
