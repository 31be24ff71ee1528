"""The verdict on an answer of the doctor, and the score of many."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doctor_count import DRAWN, DRAWN_BY, DoctorCount
from tests.lab.drawn_verdict import UNKNOWN_CAUSE, Score, Truth, Verdict, judge

TRUTH = Truth(frozenset({"coordinator_tcp", "outer_addresses"}), frozenset({"near"}), says="on the path|router")


def check(code: str, evidence: str, **more: Any) -> dict[str, Any]:
    return {"code": code, "status": "fail", "node": "near", "peer": None, "evidence": evidence, "fix": "", **more}


def test_the_first_failing_check_alone_decides() -> None:
    right = check("coordinator_tcp", "no answer to TCP: a firewall on the path drops it")
    other = check("disk_space", "/var/lib is full")
    fine = check("disk_space", "/var/lib is full", status="ok")
    assert judge([fine, right, other], TRUTH, "near") is Verdict.RIGHT
    assert judge([other, right], TRUTH, "near") is Verdict.WRONG


def test_another_cause_under_the_right_code_is_wrong() -> None:
    answer = check("coordinator_tcp", "no answer to TCP: the coordinator has ended")
    assert judge([answer], TRUTH, "near") is Verdict.WRONG
    # Of two causes one is the fault's: the reader finds it.
    both = check("coordinator_tcp", "no answer to TCP: the coordinator has ended, or a router rejects it")
    assert judge([both], TRUTH, "near") is Verdict.RIGHT


def test_the_fix_counts_as_well_as_the_evidence() -> None:
    answer = check("outer_addresses", "no answer", fix="on the ROUTER of near: nft list ruleset")
    assert judge([answer], TRUTH, "near") is Verdict.RIGHT


def test_a_pattern_of_a_wrong_cause_makes_an_answer_wrong() -> None:
    truth = Truth(frozenset({"path_loss"}), frozenset({"near"}), never="MTU")
    assert judge([check("path_loss", "60 % are lost")], truth, "near") is Verdict.RIGHT
    assert judge([check("path_loss", "60 % are lost: the MTU is too large")], truth, "near") is Verdict.WRONG


@pytest.mark.parametrize("named", [{"node": "far"}, {"node": None}, {"node": "head", "peer": "far"}])
def test_another_node_is_wrong(named: dict[str, str | None]) -> None:
    answer = check("coordinator_tcp", "a firewall on the path", **named)
    assert judge([answer], TRUTH, "head") is Verdict.WRONG


def test_a_check_without_a_node_is_about_the_host_that_was_asked() -> None:
    answer = check("coordinator_tcp", "a firewall on the path", node=None)
    assert judge([answer], TRUTH, "near") is Verdict.RIGHT


def test_the_node_may_be_the_other_end() -> None:
    answer = check("outer_addresses", "a router", node="head", peer="near")
    assert judge([answer], TRUTH, "head") is Verdict.RIGHT


def test_an_observation_without_a_cause_is_unknown_only_at_the_right_node() -> None:
    observed = check("handshake_fresh", "no handshake")
    weighed = check("coordinator_tcp", f"no answer to TCP: {UNKNOWN_CAUSE} (far reached it)")
    assert judge([observed], TRUTH, "near") is Verdict.UNKNOWN
    assert judge([weighed], TRUTH, "near") is Verdict.UNKNOWN
    assert judge([check("handshake_fresh", "no handshake", node="far")], TRUTH, "near") is Verdict.WRONG


def test_no_failing_check_is_silence_unless_a_warning_is_enough() -> None:
    warning = check("hostname_resolves", "near does not resolve", status="warn")
    strict = Truth(frozenset({"hostname_resolves"}), frozenset({"near"}))
    lenient = Truth(strict.codes, strict.nodes, warning_is_enough=True)
    assert judge([warning], strict, "near") is Verdict.SILENT
    assert judge([warning], lenient, "near") is Verdict.RIGHT
    assert judge([], lenient, "near") is Verdict.SILENT
    assert judge([{**warning, "code": "clock"}], lenient, "near") is Verdict.SILENT


def test_the_score_sums_up_by_layer_and_is_printed_in_the_closing_table() -> None:
    score = Score.of([("link", Verdict.RIGHT), ("route", Verdict.WRONG), ("route", Verdict.RIGHT)])
    assert (score.total, score.number(Verdict.RIGHT), score.share(Verdict.WRONG)) == (3, 2, 1 / 3)
    count = DoctorCount()
    for note in ("link right a", "route wrong b", "route right c"):
        count.note([(DRAWN, note), (DRAWN_BY, "SEED=7 repeats it")])
    assert str(count) == f"drawn faults: {score}; SEED=7 repeats it"
    assert "link 1/1, route 1/2" in str(count)
