"""`meshray node upgrade`, as a user types it: the order of the nodes, and what follows from each result."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from meshray.cli.commands import node_upgrade
from meshray.cli.lock_file import LockFile
from meshray.errors import RefusedError, UnreachableError
from meshray.home import Home
from meshray.installation.wheels import Wheel
from meshray.model.attestation import is_release_signed
from meshray.protocol.control import Done, GetStatus, GiveOrder, OrderPart
from meshray.protocol.status import Status
from meshray.runtime.upgrade import pointer as pointers
from tests.unit.cli.fakes import FakeApp, Outcome, type_in

NODE: dict[str, Any] = {
    "id": "1",
    "ip": "10.99.0.1",
    "public_key": "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=",
    "ray_instance": "",
    "enrolled": 1.0,
}
ROLES = {"head": ["coordinator", "head"], "one": ["worker"], "phone": ["static"], "two": ["worker"]}


class FakeMesh:
    """The head's agent and the coordinator: each node answers an order and a question as it is set."""

    def __init__(self) -> None:
        self.output: dict[str, str] = {}
        self.errors: dict[str, Exception] = {}
        self.state: dict[str, str] = {}
        self.ordered: list[str] = []
        self.arguments: Mapping[str, object] = {}
        self.lock = ""

    def watch(self, request: GiveOrder, on_event: Callable[[OrderPart], None], *, timeout_s: float) -> Done:
        self.ordered.append(request.node)
        self.arguments = request.arguments
        if request.node in self.errors:
            raise self.errors[request.node]
        on_event(OrderPart(base64.b64encode(self.output.get(request.node, "switching").encode()).decode()))
        return Done()

    def request(self, request: GetStatus) -> Status:
        return Status(node="head")

    def api(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, object]:
        if path == "/v1/nodes":
            nodes = [{**NODE, "name": name, "roles": roles} for name, roles in ROLES.items()]
            lock = {"lock": self.lock} if self.lock else {}
            return {"mesh": "m", "revision": 1, "nodes": nodes, "restored": None, **lock}
        assert body is not None
        (name,) = body["nodes"]
        answer = {"build": "b2", "state": self.state.get(name, "kept"), "tried": "b2", "reason": "its agent ended"}
        return {"answers": {name: answer}, "silent": {}}


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> FakeMesh:
    mesh = FakeMesh()
    monkeypatch.setattr(FakeApp, "control", lambda self: mesh)
    monkeypatch.setattr(FakeApp, "api", lambda self, *words: mesh.api(*words))
    monkeypatch.setattr(FakeApp, "run_from_copy", lambda self: None)
    monkeypatch.setattr("meshray.installation.build.own_build", lambda: "b2")
    monkeypatch.setattr("meshray.installation.wheels.own_wheel", lambda: Wheel("meshray.whl", b"wheel"))
    monkeypatch.setattr(node_upgrade, "_RESULT_S", 0.2)
    return mesh


def typed(tmp_path: Path, *words: str) -> Outcome:
    environ = {"MESHRAY_HOME": str(tmp_path / "state"), "MESHRAY_RUN": str(tmp_path / "run")}
    return type_in("node", "upgrade", *words, environ=environ, euid=0)


def done(outcome: Outcome) -> dict[str, str]:
    return {node["node"]: node["done"] for node in json.loads(outcome.out)["nodes"]}


def test_all_nodes_with_an_agent_are_upgraded_the_head_last(tmp_path: Path, mesh: FakeMesh) -> None:
    # The coordinator does not ask the node that runs it.
    (tmp_path / "state").mkdir()
    kept = pointers.Pointer(pointers.KEPT, "/new", "/old", "/old", "stamp", build="b2")
    pointers.begin(Home(tmp_path / "state", tmp_path / "run"), kept)
    outcome = typed(tmp_path, "--all", "--wait", "--json")
    assert done(outcome) == {"one": "upgraded", "two": "upgraded", "head": "upgraded"}
    assert (outcome.code, mesh.ordered) == (0, ["one", "two", "head"])
    (wheel,) = (tmp_path / "state/wheels").iterdir()
    assert (wheel.read_bytes(), wheel.name) == (b"wheel", f"{mesh.arguments['sha256']}.whl")


def test_without_wait_the_last_node_is_not_waited_for(tmp_path: Path, mesh: FakeMesh) -> None:
    assert done(typed(tmp_path, "--all", "--json")) == {"one": "upgraded", "two": "upgraded", "head": "switching"}
    assert done(typed(tmp_path, "one", "--json")) == {"one": "switching"}


def test_a_version_that_does_not_work_stops_the_upgrade(tmp_path: Path, mesh: FakeMesh) -> None:
    mesh.state["one"] = "returned"
    outcome = typed(tmp_path, "--all", "--json")
    assert done(outcome) == {"one": "returned", "two": "skipped", "head": "skipped"}
    assert (outcome.code, mesh.ordered) == (1, ["one"])
    assert "its agent ended" in outcome.out


def test_nodes_that_refuse_or_do_not_answer_are_named_and_the_others_upgraded(tmp_path: Path, mesh: FakeMesh) -> None:
    mesh.errors = {"one": RefusedError("remote_refused", "one accepts none", hint="there")}
    mesh.errors["two"] = UnreachableError("node_offline", "two is not connected")
    outcome = typed(tmp_path, "--all")
    assert outcome.code == 1
    assert "one: refused: one accepts none" in outcome.out
    assert "two: failed: two is not connected" in outcome.out
    assert "head: switching" in outcome.out


def test_a_node_that_gives_no_result_fails(tmp_path: Path, mesh: FakeMesh) -> None:
    mesh.state["one"] = "trial"
    outcome = typed(tmp_path, "one", "--wait", "--json")
    assert done(outcome) == {"one": "failed"}


def test_a_node_with_this_build_is_not_waited_for(tmp_path: Path, mesh: FakeMesh) -> None:
    mesh.output["one"] = "already"
    assert done(typed(tmp_path, "one", "--wait", "--json")) == {"one": "already"}


@pytest.mark.parametrize("words", [(), ("one", "--all")])
def test_one_node_or_all_must_be_named(tmp_path: Path, mesh: FakeMesh, words: tuple[str, ...]) -> None:
    outcome = typed(tmp_path, *words, "--json")
    assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (2, "upgrade_which")
    assert mesh.ordered == []


def test_in_a_mesh_with_a_lock_the_lock_signs_the_wheel(tmp_path: Path, mesh: FakeMesh) -> None:
    lock, _ = LockFile.load_or_create(tmp_path / "lock", Home(tmp_path / "state", tmp_path / "run"))
    outcome = typed(tmp_path, "one", "--lock", str(lock.path), "--json")
    assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (2, "no_lock")
    mesh.lock = str(lock.key.public())
    outcome = typed(tmp_path, "one", "--json")
    assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (2, "lock_needed")
    assert mesh.ordered == []
    assert done(typed(tmp_path, "one", "--lock", str(lock.path), "--json")) == {"one": "switching"}
    sha256, signature = str(mesh.arguments["sha256"]), str(mesh.arguments["signature"])
    assert is_release_signed(lock.key.public(), "m", sha256, signature)
