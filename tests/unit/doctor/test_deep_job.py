"""The results of the job of ``--deep`` become findings; known faults are not reported again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts
from meshray.doctor.job import transfer_program
from meshray.doctor.job.checks import SPECS
from meshray.doctor.job.facts import DeepFacts, Step
from meshray.doctor.job.probe import move_between_all
from meshray.doctor.report import FAIL, OK, SKIP
from meshray.protocol.codec import convert, to_json
from meshray.protocol.doctor import Check

FIRST = (Step(target="a", seconds=1.0), Step(source="a", target="b", seconds=0.5))
AGAIN = tuple(Step(True, step.source, step.target, step.seconds) for step in FIRST)
BROKEN = Step(source="b", target="a", seconds=30.0, error="GetTimeoutError: …")


def findings(facts: DeepFacts, known: tuple[Check, ...] = ()) -> list[tuple[str, str, str, str]]:
    report = examine(Facts(deep=facts), specs=SPECS, known=known)
    return [(check.code, check.status, check.node or "", check.peer or "") for check in report]


def test_each_direction_is_reported_with_its_speed() -> None:
    (_, moved) = examine(Facts(deep=DeepFacts(steps=FIRST)), specs=SPECS[:1])
    assert (moved.status, moved.node, moved.peer) == (OK, "a", "b")
    assert "33.6 MB/s" in moved.evidence


def test_both_rounds_are_reported() -> None:
    assert [status for _, status, _, _ in findings(DeepFacts(soak=True, steps=FIRST + AGAIN))] == [OK] * 4


def test_a_failing_route_is_named_and_not_awaited() -> None:
    assert findings(DeepFacts(soak=True, steps=(*FIRST, BROKEN)))[2:] == [
        ("ray_deep", FAIL, "b", "a"),
        ("ray_soak", SKIP, "", ""),
    ]


def test_a_later_death_is_a_failure_of_the_second_round() -> None:
    later = Step(True, "b", "a", 30.0, "NodeDiedError: …")
    assert findings(DeepFacts(soak=True, steps=(*FIRST, *AGAIN, later)))[-1] == ("ray_soak", FAIL, "b", "a")


@pytest.mark.parametrize(("steps", "code"), [((), "ray_deep"), (FIRST, "ray_deep"), (FIRST + AGAIN, "ray_soak")])
def test_a_job_that_ended_early_fails_on_its_node(steps: tuple[Step, ...], code: str) -> None:
    failed = [entry for entry in findings(DeepFacts(soak=True, error="its words", steps=steps)) if entry[1] == FAIL]
    assert failed == [(code, FAIL, "", "")]


def test_a_job_that_cannot_begin_is_skipped() -> None:
    assert {status for _, status, _, _ in findings(DeepFacts(soak=True, skipped="no Ray"))} == {SKIP}


def test_consequences_of_an_earlier_failure_are_hidden() -> None:
    known = Check("ray_ports", "ports", FAIL, "b", "a", "dropped")
    again = convert(to_json(known), Check)
    assert again == known
    report = findings(DeepFacts(steps=(*FIRST, BROKEN)), (again,))
    assert report == [
        ("ray_deep", OK, "a", ""),
        ("ray_deep", OK, "a", "b"),
        ("ray_deep", SKIP, "b", "a"),
        ("ray_soak", SKIP, "", ""),
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_rounds_have_every_ordered_pair_once_and_no_node_twice(count: int) -> None:
    names = [f"n{i}" for i in range(count)]
    turns = transfer_program.rounds(names)
    pairs = [pair for turn in turns for pair in turn]
    assert sorted(pairs) == sorted((a, b) for a in names for b in names if a != b)
    for turn in turns:
        assert len({source for source, _ in turn}) == len({target for _, target in turn}) == count


def test_the_output_of_a_job_that_cannot_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job.py"
    job.write_text(
        "import json, sys; print(json.dumps({'step': 'task', 'target': 'a'})); raise SystemExit('no cluster')"
    )
    monkeypatch.setattr(transfer_program, "__file__", str(job))
    said: list[str] = []
    found = move_between_all(Path(sys.executable), {}, None, {"10.99.0.1": "a"}, soak=False, report=said.append)
    assert found == DeepFacts(error="no cluster", steps=(Step(target="a"),))
    assert said == ["task on a: ok"]
    missing = move_between_all(tmp_path / "none", {}, None, {}, soak=False, report=said.append)
    assert "No such file" in missing.error
