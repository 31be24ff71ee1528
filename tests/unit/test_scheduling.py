"""The order of the tests: fast tiers, then the longest; heavy scopes one at a time, and no process alone at the end.

The real scheduler runs over simulated processes, each of which takes as long for a scope as the record says.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.scheduling import (
    HEAVY,
    MOST_NOT_LIGHT,
    MOST_WITH_RAY,
    OF_ONE_ENVIRONMENT,
    RECORD,
    TIMED,
    WITH_RAY,
    ByEnvironment,
    Cost,
    disturb,
    fits,
    is_light,
    rank,
    recorded,
    scope_of,
)

TESTS = Path(__file__).parents[1]
#: The tests of a simulated scope.
EACH = 4


def a_test(scope: str, number: int = 0) -> str:
    """Return the name of a test of this scope."""
    if scope == "cluster":
        return f"tests/lab/test_guard.py::{number}"
    return f"{scope}::{number}" if "/" in scope else f"tests/{scope}/test_x.py::{number}"


def test_modules_of_one_environment_are_one_scope() -> None:
    assert scope_of("tests/kube/test_charts.py::test_a") == scope_of("tests/kube/test_workers.py::test_b") == "kube"
    assert scope_of("tests/lab/test_guard.py::test_a") == scope_of("tests/lab/test_main_job.py::test_b") == "cluster"
    assert scope_of("tests/unit/web/test_live.py::test_a[x::y]") == "tests/unit/web/test_live.py"


def test_fast_tiers_come_first_and_then_the_longest() -> None:
    longest = max(recorded(), key=lambda scope: recorded()[scope].s)
    scopes = ["tests/lab/test_candidates.py", longest, "tests/unit/test_lock.py", "tests/mesh/test_agents.py"]
    first, second, *others = sorted(map(a_test, scopes), key=rank)
    assert {first, second} == {a_test("tests/mesh/test_agents.py"), a_test("tests/unit/test_lock.py")}
    assert others == [a_test(longest), a_test("tests/lab/test_candidates.py")]


def test_all_recorded_scopes_exist() -> None:
    for scope in recorded():
        assert scope == "cluster" or (TESTS / scope).is_dir() or (TESTS.parent / scope).is_file(), f"{RECORD}: {scope}"
    assert recorded().keys() >= HEAVY | TIMED | WITH_RAY


@dataclass(eq=False)
class Process:
    """A process of pytest-xdist, which runs the tests that the scheduler sends, one after the other."""

    gateway: Any
    waiting: list[int] = field(default_factory=list)
    shutting_down: bool = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.waiting += indices

    def shutdown(self) -> None:
        self.shutting_down = True


@dataclass
class Run:
    """A simulated run: when each process had nothing more to do, and the sets of scopes that ran side by side."""

    ends: list[float]
    side_by_side: set[frozenset[str]]


def simulate(durations: dict[str, float], processes: int) -> Run:
    scopes = sorted(durations, key=lambda scope: -durations[scope])
    tests = [a_test(scope, number) for scope in scopes for number in range(EACH)]
    options = SimpleNamespace(loadscopereorder=False, maxprocesses=None)
    config: Any = SimpleNamespace(option=options, getvalue=lambda name: ["popen"] * processes, hook=None)
    scheduler = ByEnvironment(config)
    nodes = [Process(SimpleNamespace(id=f"gw{n}")) for n in range(processes)]
    for node in nodes:
        scheduler.add_node(node)
    for node in nodes:
        scheduler.add_node_collection(node, tests)
    scheduler.schedule()
    now: list[tuple[float, int]] = [(0.0, n) for n in range(processes)]
    busy: dict[int, str] = {}
    ends, together = [0.0] * processes, set[frozenset[str]]()
    while now:
        at, n = heapq.heappop(now)
        if n in busy:
            scheduler.mark_test_complete(nodes[n], tests.index(busy.pop(n)))
            ends[n] = at
        # As in pytest-xdist, a process keeps its last test until it knows the next one or that there is none.
        if len(nodes[n].waiting) >= 2 or (nodes[n].waiting and nodes[n].shutting_down):
            busy[n] = tests[nodes[n].waiting.pop(0)]
            together.add(frozenset(scope_of(test) for test in busy.values()))
            heapq.heappush(now, (at + durations[scope_of(busy[n])] / EACH, n))
        elif nodes[n].waiting or not nodes[n].shutting_down:
            heapq.heappush(now, (at + 1.0, n))
    assert sum(len(node.waiting) for node in nodes) == 0
    return Run(ends, together)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("processes", [2, 3])
def test_scopes_that_disturb_each_other_run_apart_and_two_processes_work_until_the_end(
    processes: int, seed: int
) -> None:
    # On another machine, each scope takes another time than the recorded one.
    chance = random.Random(seed)
    durations = {scope: cost.s * chance.uniform(0.5, 1.5) for scope, cost in recorded().items()}
    run = simulate(durations, processes)
    for scopes in run.side_by_side:
        assert [(one, other) for one in scopes for other in scopes - {one} if disturb(one, other)] == []
        assert sum(1 for scope in scopes if not is_light(scope)) <= MOST_NOT_LIGHT, scopes
        assert sum(1 for scope in scopes if scope in WITH_RAY) <= MOST_WITH_RAY, scopes
    last, before, *_ = sorted(run.ends, reverse=True)
    assert last - before < max(durations.values()), run.ends


def test_a_third_scope_must_mostly_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, works, *two = (f"tests/lab/test_{name}.py" for name in ("waits", "works", "one", "two"))
    costs = {waits: Cost(100, 20), works: Cost(100, 60), **dict.fromkeys(two, Cost(100, 90))}
    monkeypatch.setattr("tests.scheduling.recorded", lambda: costs)
    one, other = ([scope] for scope in two)
    assert fits(works, [one])
    assert fits(works, [[*one, *other]]), "a process begins the next while the last test of the former is left"
    assert not fits(works, [one, other])
    assert fits(waits, [one, other])
    assert fits(works, [[waits], one])


@pytest.mark.parametrize("tier", sorted(OF_ONE_ENVIRONMENT))
def test_an_environment_ends_with_its_tier(tier: str) -> None:
    # Until the end of the process, its clusters would take part of a core from all other tests.
    assert not [path for path in (TESTS / tier).glob("*.py") if 'scope="session"' in path.read_text()]
