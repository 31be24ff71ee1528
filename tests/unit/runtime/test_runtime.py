"""The runtime of a node, and the additional steps of a container: it is started before, stopped or removed after."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshray.errors import MeshrayError, UnreachableError
from meshray.home import Home
from meshray.runtime.base import Command
from meshray.runtime.docker import runtime as docker
from meshray.runtime.docker.record import Record, save
from meshray.runtime.docker.runtime import Docker
from meshray.runtime.host import Host
from meshray.runtime.rootless.runtime import Rootless
from meshray.runtime.selection import agent_runtime, runtime_of

ERROR = {"schema": 1, "error": {"code": "busy", "message": "another command", "hint": ""}}


@dataclass
class FakeContainer:
    """Answer from a list, and record the calls."""

    answers: list[Mapping[str, object]]
    runs: bool = True
    name: str = "meshray-red"
    done: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.done.append("start")
        self.runs = True

    def stop(self) -> None:
        self.done.append("stop")

    def require_running(self) -> None:
        assert self.runs

    def meshray(self, words: Sequence[str], *, out: Callable[[bytes], object], **_: object) -> int:
        self.done.append(" ".join(words))
        answer = self.answers.pop(0)
        out(json.dumps(answer).encode())
        return 1 if "error" in answer else 0

    def run_once(self, words: Sequence[str]) -> tuple[int, bytes]:
        self.done.append("once " + " ".join(words))
        return 0, json.dumps(self.answers.pop(0)).encode()


class FakeConsole:
    """Show nothing, and record the questions."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def progress(self) -> Any:
        return self

    def __enter__(self) -> FakeConsole:
        return self

    def __exit__(self, *_: object) -> None: ...

    def stage(self, name: str, state: str, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def confirm(self, question: str, yes: bool) -> None:
        self.asked.append(question)

    def sudo_line(self) -> str:
        return "sudo meshray"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "state", tmp_path / "run")
    found.run.mkdir()
    return found


def contained(
    home: Home, monkeypatch: pytest.MonkeyPatch, container: FakeContainer | MeshrayError, *, ephemeral: bool = False
) -> Docker:
    """Return the runtime of a node in this container."""
    home.state.mkdir()
    save(home, Record("unix:///engine", "5d41", "meshray-red", "meshray-red-state", "/python", ephemeral))

    def of(engine: object, record: Record) -> FakeContainer:
        if isinstance(container, MeshrayError):
            raise container
        return container

    monkeypatch.setattr(docker, "open_engine", lambda environ, address: None)
    monkeypatch.setattr(docker, "NodeContainer", SimpleNamespace(of=of))
    monkeypatch.setattr(docker, "remove_container", lambda engine, record: None)
    monkeypatch.setattr("meshray.runtime.container_commands._BUSY_POLL_S", 0)
    runtime = runtime_of(home, {})
    assert isinstance(runtime, Docker)
    return runtime


def command(*words: str) -> Command:
    def run() -> Mapping[str, object]:
        raise AssertionError("it belongs into the container")

    return Command(words, run)


@pytest.mark.parametrize(("rootless", "kind"), [(False, Host), (True, Rootless)])
def test_the_agent_runs_as_it_was_enrolled(home: Home, rootless: bool, kind: type[Host]) -> None:
    runtime = agent_runtime(home, {}, rootless)
    assert type(runtime) is kind
    assert runtime.has_own_network is rootless


def test_a_node_that_runs_without_root_is_found_by_its_namespaces(home: Home) -> None:
    assert type(runtime_of(home, {})) is Host
    (home.run / "namespace.json").write_text("{}")
    assert type(runtime_of(home, {})) is Rootless
    assert agent_runtime(home, {}).inside(["ray", "status"]) == ["ray", "status"]  # Nothing holds them.


def test_on_a_host_a_command_runs_here(home: Home) -> None:
    runtime, here = runtime_of(home, {}), Command(["up"], lambda: {"mesh": "lab"})
    assert runtime.container() is None
    assert runtime.up(here, FakeConsole()) == {"mesh": "lab"}


def test_up_starts_the_container_and_waits_for_its_first_process(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    container = FakeContainer([ERROR, {"schema": 1, "mesh": "lab"}], runs=False)
    runtime = contained(home, monkeypatch, container)
    assert runtime.up(command("up", "--json"), FakeConsole()) == {"mesh": "lab"}
    assert container.done == ["start", "up --json", "up --json"]


@pytest.mark.parametrize("ephemeral", [False, True])
def test_down_stops_the_container_and_removes_an_ephemeral_one(
    home: Home, monkeypatch: pytest.MonkeyPatch, ephemeral: bool
) -> None:
    container = FakeContainer([{"schema": 1, "node": "red", "was_running": True}])
    runtime = contained(home, monkeypatch, container, ephemeral=ephemeral)
    assert runtime.down(command("down", "--json"), FakeConsole()) == {"node": "red", "was_running": True}
    assert container.done == ["down --json", "stop"]
    assert home.container.exists() is not ephemeral


def test_a_node_that_does_not_go_down_is_stopped_all_the_same(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    container = FakeContainer([{"schema": 1, "error": {"code": "agent_down", "message": "no agent", "hint": ""}}])
    with pytest.raises(MeshrayError, match="no agent"):
        contained(home, monkeypatch, container).down(command("down", "--json"), FakeConsole())
    assert container.done == ["down --json", "stop"]


@pytest.mark.parametrize(("runs", "done"), [(True, "leave --json"), (False, "once leave --json")])
def test_leave_removes_the_container(home: Home, monkeypatch: pytest.MonkeyPatch, runs: bool, done: str) -> None:
    container = FakeContainer([{"schema": 1, "node": "red", "unenrolled": True}], runs=runs)
    runtime, console = contained(home, monkeypatch, container), FakeConsole()
    assert runtime.leave(command("leave", "--json"), console, yes=False) == {"node": "red", "unenrolled": True}
    assert (container.done, console.asked, home.container.exists()) == ([done], [], False)


def test_leave_confirms_if_the_container_is_missing_but_not_if_the_engine_is(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, console = UnreachableError("container_gone", "the container was removed"), FakeConsole()
    runtime = contained(home, monkeypatch, gone)
    answer = runtime.leave(command("leave", "--json"), console, yes=False)
    assert answer == {"node": "meshray-red", "unenrolled": False}
    assert [question[:25] for question in console.asked] == ["the container was removed"]

    with pytest.raises(UnreachableError, match="no engine"):
        contained(home, monkeypatch, UnreachableError("no_docker", "no engine")).leave(
            command("leave", "--json"), console, yes=True
        )
    assert home.container.exists()


def test_a_container_that_answers_nothing_is_an_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeshrayError, match="without an answer"):
        contained(home, monkeypatch, FakeContainer([{}])).up(command("up", "--json"), FakeConsole())
