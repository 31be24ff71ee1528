"""`join --env match`, and the messages about different versions."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from meshray.cli import membership_checks
from meshray.client.coordinator import Coordinator
from meshray.environment.matched import Build, Matched
from meshray.errors import MeshrayError, RefusedError
from meshray.model.environment import Environment
from meshray.model.node import Versions
from meshray.node.enrolment import Enrolment
from meshray.raynode.versions import RayInstallation
from tests.unit.cli.fakes import FakeAgent, Outcome, type_in
from tests.unit.cli.test_bring_up import TOKEN, Machine, machine

__all__ = ["machine"]
HEAD = Environment("2.60.0", "3.11.7", "numpy==2.1.0\n")


class Head:
    """The coordinator's answers about the head, and the requests to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.asked: list[object] = []
        self.built: list[Environment] = []
        self.failure: MeshrayError | None = None
        self.folder = tmp_path / "envs" / "3f0c"

        async def call(
            _: Coordinator, method: str, path: str, body: object = None, **more: object
        ) -> dict[str, object]:
            self.asked.append((method, path, body))
            return {"schema": 1, **HEAD.to_json()}

        def run(build: Build, send: object) -> Matched:
            if self.failure is not None:
                raise self.failure
            return Matched(self.folder, True)

        def begin(build: Build, environment: Environment, *_: object) -> None:
            self.built.append(environment)

        monkeypatch.setattr(Coordinator, "call", call)
        monkeypatch.setattr(Build, "__init__", begin)
        monkeypatch.setattr(Build, "run", run)
        monkeypatch.setattr(membership_checks, "look_for_ray", self.look)

    def look(self, app: object, progress: object, explicit: str | None, args: object, *, head: bool) -> RayInstallation:
        assert explicit
        return RayInstallation(Path(explicit), Path(explicit).parent / "python", Versions("0", "2.60.0", "3.11.7"))


@pytest.fixture
def head(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Head:
    return Head(monkeypatch, tmp_path)


def test_the_node_runs_ray_from_the_environment_that_was_built(machine: Machine, head: Head) -> None:
    outcome = machine.type_in("join", "--env", "match", "--name", "gpu-1", "--json", TOKEN.encode())
    assert (outcome.code, head.built) == (0, [HEAD])
    assert json.loads(outcome.out)["env"] == {"path": str(head.folder), "built": True}
    shown = {"mesh_id": TOKEN.mesh_id, "token_id": TOKEN.token_id, "secret": TOKEN.secret}
    assert head.asked == [("POST", "/v1/environment", shown)]
    enrolment = Enrolment.load(machine.home)
    assert (enrolment.env, enrolment.ray) == ("match", str(head.folder / "bin/ray"))
    assert "environment: ok Ray 2.60.0, Python 3.11.7: built in" in outcome.err


def test_a_failed_build_spends_no_token_and_leaves_nothing(machine: Machine, head: Head) -> None:
    head.failure = MeshrayError("python_not_found", "uv did not find Python 3.11.7", hint="uv python install 3.11.7")
    outcome = machine.type_in("join", "--env", "match", TOKEN.encode())
    assert outcome.code == 1
    assert "hint: uv python install 3.11.7" in outcome.err
    assert machine.done == []
    assert machine.left() == set()


@pytest.mark.parametrize("other", [["--no-ray"], ["--ray", "/opt/ray"], ["--head"]])
def test_matching_and_something_else_is_refused(machine: Machine, head: Head, other: list[str]) -> None:
    outcome = machine.type_in("join", "--env", "match", *other, TOKEN.encode())
    assert (outcome.code, head.asked) == (2, [])
    assert f"which contradicts {other[0]}" in outcome.err


def test_a_mismatch_passes_the_coordinators_hint_on(machine: Machine, head: Head) -> None:
    machine.refusal = RefusedError("version_mismatch", "differ", hint="meshray join --env match TOKEN")
    outcome = machine.type_in("join", "--env", "match", TOKEN.encode())
    assert "hint: meshray join --env match TOKEN" in outcome.err
    assert machine.left() == set()


class Keeper:
    """An agent whose coordinator records its reports."""

    def __init__(self) -> None:
        self.agent = FakeAgent({"api": {"schema": 1, **HEAD.to_json()}})

    def lock(self, text: str, *more: str) -> Outcome:
        return type_in("env", "lock", "--from", "-", *more, agent=self.agent, stdin=io.StringIO(text))


def test_a_file_is_recorded_without_ray() -> None:
    keeper = Keeper()
    outcome = keeper.lock("numpy==2.1.0\nray==2.60.0\n", "--json")
    assert json.loads(outcome.out)["requirements"] == ["numpy==2.1.0"]
    ((op, fields),) = keeper.agent.asked
    assert (op, fields["method"], fields["path"]) == ("api", "PUT", "/v1/environment")
    assert fields["body"] == {"requirements": "numpy==2.1.0\n"}


@pytest.mark.parametrize(
    "text", ["numpy\n-e /home/ada/lib\n", "lib @ git+https://example.org/lib", "x==1\n" * 1 + "y" * 50000]
)
def test_a_file_that_cannot_be_recorded_changes_nothing(text: str) -> None:
    keeper = Keeper()
    outcome = keeper.lock(text)
    assert (outcome.code, keeper.agent.asked) == (2, [])


def test_a_missing_file_is_a_usage_error() -> None:
    outcome = type_in("env", "lock", "--from", "/nonexistent/requirements.txt")
    assert (outcome.code, "cannot be read" in outcome.err) == (2, True)


def test_env_itself_is_unchanged() -> None:
    agent = FakeAgent({"env": {"env": {"RAY_ADDRESS": "10.99.0.1:6379"}}})
    assert type_in("env", agent=agent).out == "export RAY_ADDRESS='10.99.0.1:6379'\n"
    assert json.loads(type_in("env", "--json", agent=agent).out)["env"] == {"RAY_ADDRESS": "10.99.0.1:6379"}
