"""The states of an upgrade, and who wins if two processes end a trial."""

from __future__ import annotations

from dataclasses import replace as changed
from pathlib import Path

import msgspec
import pytest

from meshray.home import Home
from meshray.runtime.upgrade import launch
from meshray.runtime.upgrade import pointer as pointers
from meshray.runtime.upgrade.pointer import KEPT, RETURNED, TRIAL, Moment, Pointer

NOW = Moment("boot-1", 100.0)
TRIED = Pointer(TRIAL, "/new/python", "/old/python", "/installed/python", "stamp", "0.2", "b2", "boot-1", 160.0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "run")


def test_a_trial_is_kept_once(home: Home) -> None:
    pointers.begin(home, TRIED)
    assert pointers.keep(home)
    assert not pointers.give_back(home, "too late")
    assert pointers.read(home) == msgspec.structs.replace(TRIED, state=KEPT)
    assert home.version_pointer.stat().st_mode & 0o777 == 0o600


def test_a_trial_that_is_given_back_cannot_be_kept(home: Home) -> None:
    pointers.begin(home, TRIED)
    assert pointers.give_back(home, "its agent ended")
    assert not pointers.keep(home)
    found = pointers.read(home)
    assert found is not None
    assert (found.state, found.python, found.reason) == (RETURNED, "/old/python", "its agent ended")


@pytest.mark.parametrize(
    ("now", "over"),
    [(NOW, False), (changed(NOW, seconds=160.0), True), (changed(NOW, boot="boot-2"), True)],
)
def test_a_trial_ends_at_its_deadline_and_with_its_boot(now: Moment, over: bool) -> None:
    assert pointers.is_over(TRIED, now) is over
    assert not pointers.is_over(msgspec.structs.replace(TRIED, state=KEPT), now)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": 1}'])
def test_a_damaged_pointer_counts_as_none(home: Home, content: str) -> None:
    home.version_pointer.write_text(content)
    assert pointers.read(home) is None
    launch.follow_pointer(home, {})


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the interpreters that were executed; none of them exists."""
    found: list[str] = []

    def execve(python: str, words: list[str], environ: dict[str, str]) -> None:
        assert words[:4] == [python, "-I", "-m", "meshray.agent"]
        found.append(python)
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.execve", execve)
    monkeypatch.setattr("sys.executable", "/installed/python")
    monkeypatch.setattr(launch, "own_stamp", lambda: "stamp")
    monkeypatch.setattr(Moment, "now", lambda: NOW)
    return found


def test_the_installed_version_starts_the_new_one_then_the_one_before(home: Home, executed: list[str]) -> None:
    pointers.begin(home, TRIED)
    launch.follow_pointer(home, {})
    assert executed == ["/new/python", "/old/python"]


def test_the_new_version_starts_nothing(home: Home, executed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/new/python")
    pointers.begin(home, TRIED)
    launch.follow_pointer(home, {})
    assert executed == []


def test_a_trial_of_an_earlier_boot_is_given_back_at_the_start(home: Home, executed: list[str]) -> None:
    pointers.begin(home, msgspec.structs.replace(TRIED, boot="boot-0"))
    launch.follow_pointer(home, {})
    assert executed[0] == "/old/python"
    found = pointers.read(home)
    assert found is not None
    assert found.state == RETURNED


@pytest.mark.parametrize("other", [{"stamp": "other"}, {"launcher": "/other/python"}])
def test_a_new_installation_ends_the_upgrade(home: Home, executed: list[str], other: dict[str, str]) -> None:
    pointers.begin(home, msgspec.structs.replace(TRIED, **other))
    launch.follow_pointer(home, {})
    assert executed == []
    assert pointers.read(home) is None
