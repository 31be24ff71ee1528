"""Commands that run in a node's container: which ones, with which arguments, and where their output goes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from meshray.cli import command_forwarding
from meshray.cli.app import App
from meshray.cli.command_forwarding import forward
from meshray.errors import MeshrayError, UnreachableError
from tests.unit.cli.fakes import Terminal


class Replaced(Exception):
    """This process would have become another program."""


@dataclass
class FakeContainer:
    """Print the received arguments, and hold a file and a log."""

    runs: bool = True
    name: str = "meshray-red"
    files: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    environ: object = None

    def require_running(self) -> None:
        if not self.runs:
            raise UnreachableError("container_down", "the container is exited")

    def meshray(
        self,
        words: Sequence[str],
        *,
        out: Callable[[bytes], object],
        err: Callable[[bytes], object],
        stdin: object,
        environ: object,
    ) -> int:
        self.words, self.environ = list(words), environ
        if {"--bundle", "--output"}.intersection(words):
            self.files[words[-1]] = b"archive"
        out(" ".join(words).encode())
        err(b"progress")
        return 3

    def replace_process(self, words: Sequence[str]) -> None:
        raise Replaced(" ".join(words))

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def unlink(self, path: str) -> None:
        del self.files[path]

    def read_log(self, part: str) -> bytes | None:
        return self.logs.get(part)


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> FakeContainer:
    found = FakeContainer()
    monkeypatch.setattr(
        command_forwarding, "runtime_of", lambda home, environ: SimpleNamespace(container=lambda: found)
    )
    return found


def app(*arguments: str, terminal: bool = False) -> App:
    streams = [Terminal() if terminal else io.StringIO() for _ in range(3)]
    return App(arguments, environ={"MESHRAY_HOME": "/nonexistent"}, stdin=streams[0], stdout=streams[1])


def test_output_and_exit_code_are_those_of_the_command_inside(
    container: FakeContainer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert forward(app("status", "--json")) == 3
    assert capfd.readouterr() == ("status --json", "progress")
    assert container.environ == {"NO_COLOR": "1"}


@pytest.mark.parametrize(
    "typed", [(), ("--help",), ("up",), ("leave", "--yes"), ("status", "-h"), ("run",), ("run", "--help"), ("nothing",)]
)
def test_commands_that_run_here_do_not_look_for_a_container(
    monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...]
) -> None:
    def look(home: object, environ: object) -> None:
        raise AssertionError("it looked")

    monkeypatch.setattr(command_forwarding, "runtime_of", look)
    assert forward(app(*typed)) is None


@pytest.mark.parametrize("shown", [["--pass", "@invitation"], ["--pass=-"]])
def test_an_order_with_a_pass_is_given_from_here(container: FakeContainer, shown: list[str]) -> None:
    assert forward(app("node", "logs", "gpu-1", *shown)) is None
    assert container.words == []
    assert forward(app("run", "python", "job.py", *shown)) == 3
    assert container.words == ["run", "python", "job.py", *shown]


def test_help_of_another_program_is_its_own(container: FakeContainer) -> None:
    assert forward(app("run", "python", "--help")) == 3
    assert container.words == ["run", "python", "--help"]


def test_a_node_without_a_container_runs_commands_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_forwarding, "runtime_of", lambda home, environ: SimpleNamespace(container=lambda: None))
    assert forward(app("status")) is None


def test_run_at_a_terminal_becomes_the_engines_program(container: FakeContainer) -> None:
    with pytest.raises(Replaced, match="run ray status"):
        forward(app("run", "ray", "status", terminal=True))
    assert container.words == []


def test_a_bundle_comes_out_of_the_container(
    container: FakeContainer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.tar.gz"
    assert forward(app("doctor", f"--bundle={target}")) == 3
    assert (target.read_bytes(), target.stat().st_mode & 0o777, container.files) == (b"archive", 0o600, {})
    assert capfd.readouterr().out == f"doctor --bundle {target}"
    with pytest.raises(MeshrayError, match="exists already"):
        forward(app("doctor", "--bundle", str(target)))


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_a_rendered_file_comes_out_of_the_container(
    container: FakeContainer, tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str
) -> None:
    target = tmp_path / "prometheus.yml"
    target.write_text("older")
    assert forward(app("render", "prometheus", option, str(target))) == 3
    assert (target.read_bytes(), container.files) == (b"archive", {})
    assert capfd.readouterr().out == f"render prometheus --output {target}"
    with pytest.raises(MeshrayError, match="cannot be written"):
        forward(app("render", "prometheus", option, str(tmp_path)))
    forward(app("render", "slurm", "--", "python", "train.py", "-o", "model"))
    assert container.words == ["render", "slurm", "--", "python", "train.py", "-o", "model"]


def test_logs_of_a_stopped_container_can_be_read(container: FakeContainer, capfd: pytest.CaptureFixture[str]) -> None:
    container.runs, container.logs["ray"] = False, b"".join(b"%d\n" % number for number in range(150))
    assert forward(app("logs", "ray")) == 0
    assert capfd.readouterr().out.split() == [str(number) for number in range(50, 150)]
    assert forward(app("logs", "-n", "2", "ray")) == 0
    assert capfd.readouterr().out.split() == ["148", "149"]
    with pytest.raises(MeshrayError, match="meshray-red"):
        forward(app("logs"))
    with pytest.raises(click.UsageError):
        forward(app("logs", "-n", "two"))
    with pytest.raises(UnreachableError):
        forward(app("status"))
