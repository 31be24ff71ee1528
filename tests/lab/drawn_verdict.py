"""Whether an answer of the doctor is right: compare its first failing check with what is known of the fault (pure).

    truth = Truth(frozenset({"coordinator_tcp"}), frozenset({"near"}), says="on the path")
    judge(answer.checks, truth, asked="near")
    <Verdict.RIGHT: 'right'>

A check that names a cause which is not the fault's is worse than one that says what was observed and no more: the first
sends its reader elsewhere. So there are four verdicts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

#: The words of `meshray.doctor.hypotheses.weigh` when no cause is left.
UNKNOWN_CAUSE = "the cause is unknown"
#: These checks report what was observed and name no cause.
OBSERVATIONS = frozenset({"handshake_fresh", "peer_answers"})


class Verdict(Enum):
    """How the doctor answered."""

    #: The first failing check names the fault, or two causes of which the fault is one.
    RIGHT = "right"
    #: It says that the cause is unknown, or only what was observed at the right node.
    UNKNOWN = "unknown"
    #: It names another cause, or another node.
    WRONG = "wrong"
    #: No check fails.
    SILENT = "silent"


@dataclass(frozen=True)
class Truth:
    """What a right answer to one fault contains.

    Attributes:
        codes: the codes that the first failing check may have.
        nodes: the nodes of which it must name one, as its node or its peer.
        says: a pattern that its evidence or its fix must match, whatever the case; empty: any text.
        never: a pattern of a wrong cause, which neither may match.
        warning_is_enough: the fault harms little, so that a warning of such a check is right too.
    """

    codes: frozenset[str]
    nodes: frozenset[str]
    says: str = ""
    never: str = ""
    warning_is_enough: bool = False

    def is_named_by(self, check: Mapping[str, Any], asked: str) -> bool:
        """Return whether this check names the fault; ``asked``: the host of checks that name no node."""
        text = f"{check['evidence']}\n{check['fix']}"
        return (
            check["code"] in self.codes
            and self.concerns(check, asked)
            and (not self.says or re.search(self.says, text, re.IGNORECASE) is not None)
            and (not self.never or re.search(self.never, text, re.IGNORECASE) is None)
        )

    def concerns(self, check: Mapping[str, Any], asked: str) -> bool:
        """Return whether this check is about one of the nodes."""
        return not self.nodes.isdisjoint({check["node"] or asked, check["peer"]})


def judge(checks: Sequence[Mapping[str, Any]], truth: Truth, asked: str) -> Verdict:
    """Return the verdict on a report.

    Args:
        checks: its checks in their order, as in the doctor's JSON.
        asked: the host on which the doctor ran.
    """
    first = next((check for check in checks if check["status"] == "fail"), None)
    if first is None:
        warnings = (check for check in checks if check["status"] == "warn")
        named = truth.warning_is_enough and any(truth.is_named_by(check, asked) for check in warnings)
        return Verdict.RIGHT if named else Verdict.SILENT
    if truth.is_named_by(first, asked):
        return Verdict.RIGHT
    only_observed = first["code"] in OBSERVATIONS or UNKNOWN_CAUSE in first["evidence"]
    return Verdict.UNKNOWN if only_observed and truth.concerns(first, asked) else Verdict.WRONG


@dataclass(frozen=True)
class Score:
    """How many answers had each verdict, by layer.

    >>> score = Score.of([("route", Verdict.RIGHT), ("route", Verdict.WRONG), ("link", Verdict.RIGHT)])
    >>> str(score)
    '2 of 3 right, 1 wrong, 0 unknown, 0 silent (link 1/1, route 1/2)'
    """

    by_layer: Mapping[str, Counter[Verdict]]

    @classmethod
    def of(cls, answers: Iterable[tuple[str, Verdict]]) -> Score:
        """Return the sum of (layer, verdict)."""
        by_layer: dict[str, Counter[Verdict]] = {}
        for layer, verdict in answers:
            by_layer.setdefault(layer, Counter())[verdict] += 1
        return cls(by_layer)

    @property
    def total(self) -> int:
        """The number of answers."""
        return sum(counts.total() for counts in self.by_layer.values())

    def number(self, verdict: Verdict) -> int:
        """Return how many answers had this verdict."""
        return sum(counts[verdict] for counts in self.by_layer.values())

    def share(self, verdict: Verdict) -> float:
        """Return the share of answers with this verdict, 0 to 1."""
        return self.number(verdict) / self.total

    def __str__(self) -> str:
        others = ", ".join(
            f"{self.number(one)} {one.value}" for one in (Verdict.WRONG, Verdict.UNKNOWN, Verdict.SILENT)
        )
        layers = ", ".join(
            f"{layer} {counts[Verdict.RIGHT]}/{counts.total()}" for layer, counts in sorted(self.by_layer.items())
        )
        return f"{self.number(Verdict.RIGHT)} of {self.total} right, {others} ({layers})"
