"""The first process of a container, which need not be pid 1."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshray.linux import procfs
from meshray.runtime.container.ancestry import first_process

FIRST = b"python\0-I\0-m\0meshray.runtime.container.first\0join\0"


def process(root: Path, pid: int, parent: int, cmdline: bytes = b"python\0", uid: int | None = None) -> None:
    real, effective = (os.geteuid() if uid is None else uid), os.geteuid()
    (root / str(pid)).mkdir()
    (root / str(pid) / "cmdline").write_bytes(cmdline)
    (root / str(pid) / "status").write_text(
        f"Name:\tpython\nPid:\t{pid}\nPPid:\t{parent}\nUid:\t{real}\t{effective}\t0\t0\n"
    )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(procfs, "_PROC", tmp_path)
    process(tmp_path, os.getpid(), 900001)
    process(tmp_path, 900001, 900000)
    return tmp_path


def test_it_is_pid_1(machine: Path) -> None:
    process(machine, 1, 0, FIRST)
    process(machine, 900000, 1)
    assert first_process() == 1


def test_in_a_pod_with_shared_processes_it_is_an_ancestor(machine: Path) -> None:
    process(machine, 1, 0, b"/pause\0")
    process(machine, 900000, 0, FIRST)
    assert first_process() == 900000


def test_a_process_of_that_name_beside_is_none(machine: Path) -> None:
    process(machine, 1, 0, b"/sbin/init\0")
    process(machine, 900000, 1)
    process(machine, 900002, 1, FIRST)
    assert first_process() is None


def test_another_users_ancestor_is_none(machine: Path) -> None:
    """A user could start sudo from a process with such a command line."""
    process(machine, 1, 0, b"/sbin/init\0")
    process(machine, 900000, 1, FIRST, uid=os.geteuid() + 1)
    assert first_process() is None


def test_a_circle_of_parents_ends(machine: Path) -> None:
    process(machine, 900000, 900001)
    assert first_process() is None
