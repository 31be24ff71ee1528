from __future__ import annotations

from pathlib import Path

import pytest

from meshray.linux import memory_limit
from meshray.model.ray_end import OUT_OF_MEMORY
from meshray.raynode import memory_kills
from meshray.raynode.memory_kills import MemoryKills


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "memory.events"
    file.write_text("oom 4\noom_kill 4\n")
    monkeypatch.setattr(memory_limit, "kills_file", lambda pid: file)
    return file


def test_a_kill_just_before_the_end_is_its_cause(events: Path) -> None:
    kills = MemoryKills()
    kills.look(1001)
    assert kills.explain("raylet ended") == "raylet ended"
    events.write_text("oom 5\noom_kill 5\n")
    assert kills.explain("raylet ended") == f"{OUT_OF_MEMORY} in Ray's control group: raylet ended"


def test_an_older_kill_is_not_the_cause(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = MemoryKills()
    kills.look(1001)
    events.write_text("oom_kill 5\n")
    kills.look(1001)
    monkeypatch.setattr(memory_kills, "_RECENT_S", -1.0)
    assert kills.explain("raylet ended") == "raylet ended"


def test_the_next_ray_starts_without_the_kills_of_the_last(events: Path) -> None:
    kills = MemoryKills()
    kills.look(1001)
    events.write_text("oom_kill 5\n")
    kills.look(1002)
    assert kills.explain("raylet ended") == "raylet ended"
    events.unlink()  # The group has ended with its processes.
    assert kills.explain("raylet ended") == "raylet ended"
