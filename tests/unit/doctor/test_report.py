"""The hiding rule, with checks of its own: a failure hides its consequences, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec
from meshray.protocol.status import CoordinatorStatus, Status

FACTS = Facts(status=Status("lab", 1, "head", CoordinatorStatus(True), ()))
NODES = ("a", "b", "c")
#: The mesh, each node, each ordered pair.
PLACES = [("", ""), *((node, "") for node in NODES), *((a, b) for a in NODES for b in NODES if a != b)]


def spec(code: str, findings: Iterable[Finding], *after: str) -> Spec:
    found = list(findings)
    return Spec(code, code, after, lambda facts: found)


def everywhere(status: str) -> list[Finding]:
    return [Finding(status, "seen", node=node, peer=peer) for node, peer in PLACES if node]


def hidden_by(cause: Finding, facts: Facts = FACTS) -> set[tuple[str, str]]:
    specs = (spec("cause", [cause]), spec("effect", everywhere(FAIL), "cause"))
    checks = [check for check in examine(facts, specs=specs) if check.code == "effect"]
    return {(check.node or "", check.peer or "") for check in checks if check.status == SKIP}


def test_a_failure_of_the_mesh_hides_all_that_depends_on_it() -> None:
    assert hidden_by(Finding(FAIL, "broken")) == {("", "")}


def test_a_failure_of_a_node_hides_the_node_and_its_pairs() -> None:
    assert hidden_by(Finding(FAIL, "broken", node="a")) == {
        ("a", ""), ("a", "b"), ("a", "c"), ("b", "a"), ("c", "a")
    }  # fmt: skip


def test_a_failure_between_two_nodes_hides_that_pair_and_its_ends() -> None:
    assert hidden_by(Finding(FAIL, "broken", node="a", peer="b")) == {("a", ""), ("b", ""), ("a", "b"), ("b", "a")}


@pytest.mark.parametrize("status", [OK, WARN, SKIP])
def test_only_a_failure_hides(status: str) -> None:
    assert hidden_by(Finding(status, "seen", node="a")) == set()


def test_a_blinding_check_hides_others_without_failing() -> None:
    assert hidden_by(Finding(SKIP, "closed", hides_dependents=True)) == {("", "")}


def test_without_an_agent_a_node_is_the_whole_machine() -> None:
    assert hidden_by(Finding(FAIL, "broken", node="a"), Facts(agent_error="no agent runs")) == {("", "")}


def test_hiding_goes_on_through_what_is_hidden_and_names_the_first_cause() -> None:
    specs = (
        spec("cause", [Finding(FAIL, "broken", node="a")]),
        spec("middle", [Finding(FAIL, "follows", node="a")], "cause"),
        spec("end", everywhere(FAIL), "middle"),
    )
    end = [check for check in examine(FACTS, specs=specs) if check.code == "end" and check.status == SKIP]
    assert {check.evidence for check in end} == {"follows from: cause"}
    assert {check.node for check in end if not check.peer} == {"a"}


STATUSES = st.sampled_from([OK, WARN, FAIL, SKIP])
FINDINGS = st.lists(
    st.tuples(STATUSES, st.sampled_from(PLACES)).map(lambda item: Finding(item[0], "seen", "fix", *item[1])), max_size=6
)


@given(st.lists(st.tuples(FINDINGS, st.sets(st.integers(0, 5))), min_size=1, max_size=6))
def test_a_failure_is_never_lost_and_the_first_one_never_hidden(
    groups: Sequence[tuple[list[Finding], set[int]]],
) -> None:
    specs = tuple(
        spec(str(number), found, *(str(earlier) for earlier in after if earlier < number))
        for number, (found, after) in enumerate(groups)
    )
    report = examine(FACTS, specs=specs)
    failed = [check for check in report if check.status == FAIL]
    # A failure is always reported; and every hidden check names a cause that is reported.
    assert bool(failed) == any(finding.status == FAIL for found, _ in groups for finding in found)
    causes = {check.title for check in failed}
    for check in report:
        if check.evidence.startswith("follows from: "):
            assert check.status == SKIP
            assert check.fix == ""
            assert check.evidence.removeprefix("follows from: ") in causes
