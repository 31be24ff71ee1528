"""The doctor's answers to faults that are drawn from a space of some hundred, and the share of right ones.

The networks are those of `drawn_stage`, the faults those of `fault_space`; `make nightly` draws more of them.

Each fault is injected; when its effect is there the doctor is asked once; then the fault is healed, and no check may
fail any longer. An answer that is not right does not fail its own test, but counts in the score.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.doctor_count import DRAWN, DRAWN_BY
from tests.lab.doctoring import Answer, until_well
from tests.lab.drawn_fault import Draw, DrawnFault
from tests.lab.drawn_stage import DrawnStage
from tests.lab.drawn_verdict import Score, Verdict, judge
from tests.lab.fault_space import SPACE
from tests.lab.world import World

DRAW = Draw.of(os.environ)
#: The time until all is well again, seconds: an agent that joins again measures its paths again.
WHOLE_AGAIN_S = 90
#: The shares that were measured, less one answer of 25. The aim is 0.9 and 0.03 for every seed.
LEAST_RIGHT, MOST_WRONG = 0.88, 0.08


@pytest.fixture(scope="module")
def stage() -> Iterator[DrawnStage]:
    with World("drawn-faults") as world:
        stage = DrawnStage.build(world)
        until_well(stage.cluster.hosts)
        yield stage


@pytest.fixture(scope="module")
def verdicts() -> dict[str, tuple[str, Verdict]]:
    """Return the layer and the verdict of each fault, by name; the tests add theirs."""
    return {}


@pytest.mark.parametrize("fault", DRAW.faults(SPACE), ids=lambda fault: str(fault.name))
def test_a_drawn_fault_is_judged(
    stage: DrawnStage,
    fault: DrawnFault,
    verdicts: dict[str, tuple[str, Verdict]],
    record_property: Callable[[str, object], None],
) -> None:
    try:
        stage.inject(fault)
        answer = stage.answer(fault)
    finally:
        stage.heal(fault)
        until_well(stage.hosts_to_check(fault), deadline_s=WHOLE_AGAIN_S)
    verdict = judge(answer.checks, fault.truth, fault.asked)
    verdicts[fault.name] = (fault.layer, verdict)
    record_property(DRAWN, f"{fault.layer} {verdict.value} {fault.name}")
    record_property(DRAWN_BY, str(DRAW))
    print(f"{verdict.value}: {fault.name}, {answer.seconds:.1f} s", describe(answer, verdict))


def describe(answer: Answer, verdict: Verdict) -> str:
    """Return the first failing check, if the answer is not right."""
    if verdict is Verdict.RIGHT:
        return ""
    return "".join(
        f"\n    {check['code']} [{check['node']} {check['peer']}]: {check['evidence']}\n    fix: {check['fix']}"
        for check in answer.failing[:1]
    )


def test_the_score_is_reached(verdicts: dict[str, tuple[str, Verdict]]) -> None:
    if not verdicts:
        pytest.skip("no fault was drawn in this run")
    score = Score.of(verdicts.values())
    print(score)
    missed = [f"{verdict.value}: {name}" for name, (_, verdict) in verdicts.items() if verdict is not Verdict.RIGHT]
    assert score.share(Verdict.RIGHT) >= LEAST_RIGHT, missed
    assert score.share(Verdict.WRONG) <= MOST_WRONG, missed
