"""Which clock is wrong: the check compares the differences of all nodes before it blames one."""

from __future__ import annotations

import pytest

from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, HostFacts, NodeFacts
from meshray.doctor.machine import clocks
from meshray.doctor.machine.facts import MachineFacts
from meshray.doctor.report import FAIL, OK, SKIP, WARN
from meshray.linux.time_service import is_synchronised
from meshray.protocol.doctor import Check


def report(*, head_kept: bool | None = None, kept: bool | None = None, **offsets: float) -> dict[str, Check]:
    """Return the check's line of each node; ``offsets``: each worker's clock minus the head's, seconds."""
    head = MachineFacts(clock_is_reference=True, clock_unknown="it is the mesh's clock", clock_synchronised=head_kept)
    machines = {"head": head} | {
        name: MachineFacts(clock_offset_s=offset, clock_synchronised=kept) for name, offset in offsets.items()
    }
    nodes = {name: NodeFacts(name, HostFacts(machine=one)) for name, one in machines.items()}
    return {check.node or "": check for check in examine(Facts(nodes=nodes), specs=(clocks.SPEC,))}


def test_clocks_that_agree_are_fine() -> None:
    assert {name: check.status for name, check in report(w1=0.4, w2=-1.0).items()} == {
        "head": SKIP,
        "w1": OK,
        "w2": OK,
    }


@pytest.mark.parametrize(("offset", "status"), [(3600.0, FAIL), (-3600.0, FAIL), (5.0, WARN)])
def test_the_heads_clock_is_wrong_if_all_others_agree(offset: float, status: str) -> None:
    found = report(w1=offset, w2=offset + 1, w3=offset - 0.5)
    assert list(found) == ["head"]
    assert (found["head"].status, "the coordinator's clock is wrong" in found["head"].evidence) == (status, True)
    assert "set-ntp" in found["head"].fix


def test_a_nodes_clock_is_wrong_if_another_agrees_with_the_head() -> None:
    found = report(w1=3600.0, w2=0.1)
    assert {name: check.status for name, check in found.items()} == {"head": SKIP, "w1": FAIL, "w2": OK}
    assert "w2 agree with the coordinator's" in found["w1"].evidence
    assert any(line.startswith("not: the coordinator's clock") for line in found["w1"].explanation)


def test_nodes_that_differ_by_different_amounts_are_reported_each() -> None:
    found = report(w1=3600.0, w2=-900.0)
    assert {name: check.status for name, check in found.items()} == {"head": SKIP, "w1": FAIL, "w2": FAIL}


def test_a_time_service_is_a_witness() -> None:
    found = report(w1=3600.0, kept=True, head_kept=False)
    assert (list(found), found["head"].status) == (["head"], FAIL)
    undecided = report(w1=3600.0, kept=True)["w1"]
    assert "this node's clock is wrong, or the coordinator's clock is wrong" in undecided.evidence
    assert "timedatectl" in undecided.fix


def test_the_kernel_reports_whether_a_service_keeps_the_clock() -> None:
    assert is_synchronised() in (True, False)
