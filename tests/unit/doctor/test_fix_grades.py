"""Every fix has a grade, and a fix that costs much never comes before one that costs less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meshray.doctor.fix_grades import DESTRUCTIVE, GRADES, HARMLESS, RESTART, grade
from meshray.doctor.hypotheses import Hypothesis, weigh
from meshray.doctor.report import FAIL, OK, Finding, Spec
from meshray.doctor.routes.checks import other_vpns
from meshray.doctor.routes.facts import OtherNetwork, RoutingFacts
from tests.printed_texts import PACKAGE, texts_of

OVERLAY = "10.99.0.0/16"
#: What separates alternatives in a fix.
_ALTERNATIVES = re.compile(r"(?:[;,] | )or (?:else: )?|; if |; until then ")
#: Words after which a program ends, or something is gone, whatever follows: a text with one has a higher grade than
#: harmless.
_COSTS = re.compile(
    r"\bmeshray (down|leave|node rm|restore|init --network)\b|\bpip install\b|\bdocker (rm|restart|stop)\b"
    r"|\bsystemctl (re)?(start|load) meshray|\bkill -?\d|\breboot\b|\brecreate\b|\bmesh again\b"
)
#: The modules whose texts are printed as fixes: the doctor's, and those of problems in status.
MODULES = sorted(file for file in (PACKAGE / "doctor").rglob("*.py") if file.stem != "fix_grades")


@pytest.mark.parametrize(
    ("fix", "expected"),
    [
        ("on gpu-1: ip link set meshray0 up", HARMLESS),
        ("meshray up; meshray logs agent", HARMLESS),
        ("kill -CONT 77 78", HARMLESS),
        ("nft insert rule inet filter input udp dport 51888 accept", HARMLESS),
        ("meshray down; meshray up", RESTART),
        ("on w1: meshray down, then meshray up", RESTART),
        ("end nginx (pid 7), then look", RESTART),
        ("on w1, start Ray again: /opt/ray start --head", RESTART),
        ("python -m pip install 'ray[default]==2.50'", RESTART),
        ("recreate this container with --gpus all", RESTART),
        ("is the machine on? if it is gone for good: meshray node rm w1", DESTRUCTIVE),
        ("on w1: meshray leave, then join with a new token", DESTRUCTIVE),
        ("meshray leave --local", DESTRUCTIVE),
        ("create the mesh again with another network: meshray init --network 10.201.0.0/16", DESTRUCTIVE),
        ("docker network ls; recreate the one with 10.99.7.0/24", DESTRUCTIVE),
    ],
)
def test_the_grade_is_that_of_the_costliest_command(fix: str, expected: str) -> None:
    assert grade(fix) == expected


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(Path(file).relative_to(PACKAGE)))
def test_fixes_of_the_program_are_graded_and_the_cheapest_comes_first(file: Path) -> None:
    for text in texts_of(file, OVERLAY):
        assert grade(text) != HARMLESS or not _COSTS.search(text), text
        costs = [GRADES.index(grade(alternative)) for alternative in _ALTERNATIVES.split(text)]
        assert costs[0] == min(costs), text


def test_a_line_of_the_report_has_the_grade_of_its_fix() -> None:
    spec = Spec("code", "title", (), lambda facts: ())
    assert spec.line(Finding(FAIL, "broken", "meshray down; meshray up")).fix_grade == RESTART
    assert spec.line(Finding(OK, "fine")).fix_grade is None


def test_of_two_equally_likely_causes_one_with_a_destructive_fix_comes_last() -> None:
    dear = Hypothesis("the node was removed", "meshray leave, then join")
    cheap = Hypothesis("a firewall drops it", "open TCP port 51888")
    found = weigh("no answer", (dear, cheap))
    assert found.fix == "open TCP port 51888; or else: meshray leave, then join"
    # What the evidence supports comes first all the same.
    supported = Hypothesis("the node was removed", "meshray leave, then join", supported=("the map lacks it",))
    assert weigh("no answer", (cheap, supported)).fix == "meshray leave, then join"


@pytest.mark.parametrize("networks", [("0.0.0.0/0",), ("0.0.0.0/1", "128.0.0.0/1"), ("0.0.0.0/2", "64.0.0.0/2")])
def test_a_vpn_that_takes_all_traffic_is_not_a_reason_for_another_mesh(networks: tuple[str, ...]) -> None:
    vpn = OtherNetwork("tun7", "a VPN", networks)
    found = other_vpns(RoutingFacts(OVERLAY, "meshray0", others=(vpn,)))
    assert (found.status, found.fix) == (OK, "")


def test_a_vpn_with_a_wider_private_network_hides_a_part_which_may_not_matter() -> None:
    vpn = OtherNetwork("tun7", "a VPN", ("10.0.0.0/8",))
    found = other_vpns(RoutingFacts(OVERLAY, "meshray0", others=(vpn,)))
    assert "10.0.0.0/8 of a VPN on tun7" in found.evidence
    assert found.fix.startswith("nothing, if no machine behind tun7 has an address in 10.99.0.0/16")
