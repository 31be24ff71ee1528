from __future__ import annotations

from dataclasses import replace

import pytest

from meshray.raynode import processes
from meshray.raynode.processes import Family, Process, members

INIT = Process(1, 0, 0, 1)
LEADER = Process(100, 50, 1, 100)
RAYLET = Process(101, 60, 100, 100)
WORKER = Process(102, 70, 101, 100)
#: A job's driver, with its own session.
DRIVER = Process(103, 80, 102, 103)
FOREIGN = Process(200, 55, 1, 200)


def table(*processes: Process) -> dict[int, Process]:
    return {process.pid: process for process in (INIT, FOREIGN, *processes)}


def test_all_of_ray_is_found_from_its_leader_and_nothing_else() -> None:
    found = members(100, frozenset(), table(LEADER, RAYLET, WORKER, DRIVER))
    assert found == {LEADER, RAYLET, WORKER, DRIVER}


def test_orphans_of_a_killed_leader_are_found_through_known_processes() -> None:
    orphan, late = Process(102, 70, 1, 100), Process(104, 90, 1, 100)
    assert members(100, frozenset({LEADER, WORKER}), table(orphan, late)) == {orphan, late}


def test_a_reused_pid_or_session_is_not_ours() -> None:
    reused, its_child = Process(100, 900, 1, 100), Process(101, 901, 100, 100)
    assert members(100, frozenset({LEADER, RAYLET}), table(reused, its_child)) == frozenset()


def test_a_family_is_broken_once_a_vital_process_of_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = table(LEADER, replace(RAYLET, name="raylet"), replace(WORKER, name="ray::IDLE"))
    monkeypatch.setattr(processes, "_running", lambda: alive)
    monkeypatch.setattr(processes, "_process", alive.get)
    family = Family(100)
    assert not family.is_broken()
    family.scan()
    del alive[WORKER.pid]
    assert not family.is_broken()
    alive[RAYLET.pid] = replace(RAYLET, started=900)
    assert family.is_broken()
    family.scan()
    assert family.is_broken()


def test_a_child_of_the_raylet_that_still_bears_its_name_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    raylet = replace(RAYLET, name="raylet")
    between, before_exec = Process(104, 75, 101, 100, "raylet"), Process(105, 76, 1, 100, "raylet")
    alive = table(LEADER, raylet, between, before_exec)
    monkeypatch.setattr(processes, "_running", lambda: alive)
    monkeypatch.setattr(processes, "_process", alive.get)
    family = Family(100)
    family.scan()
    del alive[between.pid], alive[before_exec.pid]
    assert not family.is_broken() and not family.has_no_raylet()
    del alive[RAYLET.pid]
    assert family.is_broken()


def test_a_family_without_a_raylet_and_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = table(replace(LEADER, started=0), replace(WORKER, name="gcs_server", parent=100))
    monkeypatch.setattr(processes, "_running", lambda: alive)
    monkeypatch.setattr(processes, "_process", alive.get)
    family = Family(100)
    family.scan()
    assert family.has_no_raylet()
    age_s = family.age_s()
    assert age_s is not None and age_s > 1
    assert Family(99).age_s() is None
    alive[RAYLET.pid] = replace(RAYLET, name="raylet")
    family.scan()
    assert not family.has_no_raylet()


def test_nothing_is_found_where_nothing_runs() -> None:
    assert members(100, frozenset(), table()) == frozenset()


def test_the_kernels_line_is_read_whatever_the_program_is_called() -> None:
    numbers = " ".join(str(number) for number in range(1, 50))
    line = f"102 (ray::f(x) R) S 101 100 100 {numbers}"
    assert Process.parse(102, line) == Process(102, 16, 101, 100)
    assert [p.name for p in [Process.parse(102, line)] if p] == ["ray::f(x) R"]
    assert Process.parse(102, line.replace(" S ", " Z ")) is None
    assert Process.parse(102, "") is None
