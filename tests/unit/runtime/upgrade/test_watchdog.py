"""What the watchdog of an upgrade does, step by step."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from meshray.home import Home
from meshray.runtime.upgrade import pointer as pointers
from meshray.runtime.upgrade.pointer import KEPT, RETURNED, TRIAL, Moment, Pointer
from meshray.runtime.upgrade.watchdog import INSTALL_S, Watchdog

TRIED = Pointer(TRIAL, "/new/python", "/old/python", "/installed/python", "stamp", "0.2", "b2", "boot-1", 160.0)


class Machine:
    """A machine with one agent, and a watchdog that looks whenever the clock is set."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.seconds = 100.0
        self.runs = True
        self.starts = self.kills = 0
        self.watchdog = Watchdog(home, start=self.start, kill=self.kill, runs=lambda: self.runs, now=self.now)

    def now(self) -> Moment:
        return Moment("boot-1", self.seconds)

    def start(self) -> None:
        self.starts, self.runs = self.starts + 1, True

    def kill(self) -> None:
        self.kills, self.runs = self.kills + 1, False

    def watch(self, seconds: float) -> bool:
        """Let time pass; return whether the watchdog still watches."""
        until = self.seconds + seconds
        while self.seconds < until:
            self.seconds += 0.5
            if not self.watchdog.step():
                return False
        return True

    @property
    def state(self) -> str:
        pointer = pointers.read(self.home)
        return pointer.state if pointer is not None else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(Home(tmp_path, tmp_path / "run"))


def test_a_version_that_works_ends_the_watch(machine: Machine) -> None:
    assert machine.watch(20)
    pointers.begin(machine.home, TRIED)
    assert machine.watch(10)
    pointers.keep(machine.home)
    assert not machine.watch(20)
    assert (machine.starts, machine.kills, machine.state) == (0, 0, KEPT)


def test_an_agent_that_is_killed_while_the_wheel_is_installed_is_started(machine: Machine) -> None:
    machine.watch(5)
    machine.runs = False
    assert not machine.watch(30)
    assert (machine.starts, machine.state) == (1, "")


def test_a_version_whose_agent_ends_is_given_back(machine: Machine) -> None:
    pointers.begin(machine.home, TRIED)
    machine.watch(2)
    machine.runs = False
    assert not machine.watch(30)
    assert (machine.starts, machine.kills, machine.state) == (1, 0, RETURNED)


def test_a_version_that_hangs_is_killed_at_the_deadline(machine: Machine) -> None:
    pointers.begin(machine.home, TRIED)
    assert machine.watch(59)
    assert machine.state == TRIAL
    assert not machine.watch(30)
    assert (machine.starts, machine.kills, machine.state) == (1, 1, RETURNED)
    assert machine.seconds <= TRIED.deadline_s + 10


def test_a_version_that_is_killed_when_it_was_just_kept_is_started(machine: Machine) -> None:
    pointers.begin(machine.home, msgspec.structs.replace(TRIED))
    machine.watch(2)
    pointers.keep(machine.home)
    machine.watch(1)
    machine.runs = False
    assert not machine.watch(30)
    assert (machine.starts, machine.state) == (1, KEPT)


def test_an_agent_that_always_ends_is_not_started_forever(machine: Machine) -> None:
    machine.watchdog._start = lambda: None
    machine.runs = False
    assert not machine.watch(30)


def test_an_installation_that_never_ends_is_not_watched_forever(machine: Machine) -> None:
    assert not machine.watch(INSTALL_S + 30)
