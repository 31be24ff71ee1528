"""Processes that are found again through their pid files: real ones, which only sleep."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshray.linux.process import ManagedProcess
from tests.lab.waiting import wait_until

#: Much less than the time before a process is killed.
AT_ONCE_S = 2.0


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ManagedProcess]:
    process = ManagedProcess(tmp_path / "sleeper.pid")
    process.spawn(["sleep", "60"], env={}, log=tmp_path / "log", mark="first")
    yield process
    process.stop_blocking(0)


def test_the_pid_file_identifies_the_process(sleeper: ManagedProcess, tmp_path: Path) -> None:
    other = ManagedProcess(tmp_path / "sleeper.pid")
    assert (other.pid, other.mark) == (sleeper.pid, "first")


def test_a_child_that_another_object_started_ends_at_once(sleeper: ManagedProcess, tmp_path: Path) -> None:
    """Nobody else reaps it: a zombie was waited for until SIGKILL, and then as long again."""
    began = time.monotonic()
    ManagedProcess(tmp_path / "sleeper.pid").stop_blocking(5)
    assert time.monotonic() - began < AT_ONCE_S
    assert sleeper.pid is None


def test_a_process_that_ignores_signals_is_killed(tmp_path: Path) -> None:
    deaf = ManagedProcess(tmp_path / "deaf.pid")
    deaf.spawn(
        # In a loop: otherwise it may end because its child was killed a moment before.
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 60 & wait; done"],
        env={"PATH": "/usr/bin:/bin"},
        log=tmp_path / "log",
    )
    wait_until(lambda: "ready" in (tmp_path / "log").read_text(), 5, "the trap")
    deaf.stop_blocking(0.2)
    assert deaf.pid is None
    assert deaf.exit_code == -signal.SIGKILL


def test_a_pid_of_another_process_is_not_taken_for_ours(sleeper: ManagedProcess, tmp_path: Path) -> None:
    file = tmp_path / "sleeper.pid"
    record = json.loads(file.read_text())
    for changed in ({"started": record["started"] + 1}, {"boot": "another"}, {"pid": None}, {"pid": "1"}):
        file.write_text(json.dumps({**record, **changed}))
        assert ManagedProcess(file).pid is None
    file.write_text(json.dumps(record))
    assert ManagedProcess(file).pid == record["pid"]
