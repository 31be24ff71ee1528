"""Possible causes of one observation, weighed by the evidence of all nodes (pure).

A check lists what could cause its observation, each cause with the evidence for and against it. A cause that any
evidence contradicts is dropped. Of the others the one with the most evidence is reported. If two have equally much, the
finding states both, one whose fix is destructive last, and the command that distinguishes them; if none is left, it
says that the cause is unknown.

    >>> firewall = Hypothesis("the head's firewall drops it", "open TCP port 51888", against=("w2 is connected",))
    >>> network = Hypothesis("w1's own network drops it", "let it out of w1's network")
    >>> weigh("no answer to TCP", (firewall, network), node="w1").evidence
    "no answer to TCP: w1's own network drops it"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshray.doctor.fix_grades import DESTRUCTIVE, grade
from meshray.doctor.report import FAIL, Finding


@dataclass(frozen=True)
class Hypothesis:
    """One possible cause.

    Attributes:
        cause: the end of the sentence "OBSERVATION: …".
        fix: the next command if this is the cause.
        supported: the evidence for it, one statement each.
        against: the evidence that contradicts it; any drops the hypothesis.
        node: the node at fault, if it is not the one that observed it.
    """

    cause: str
    fix: str
    supported: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    node: str = ""


def given(*statements: tuple[bool, str]) -> tuple[str, ...]:
    """Return the statements that hold.

    >>> given((True, "other nodes are connected"), (False, "no node is connected"))
    ('other nodes are connected',)
    """
    return tuple(text for holds, text in statements if holds)


def weigh(
    observation: str,
    hypotheses: Iterable[Hypothesis],
    *,
    node: str = "",
    peer: str = "",
    status: str = FAIL,
    distinguish: str = "",
) -> Finding:
    """Return the finding with the best cause.

    Args:
        observation: what was measured.
        hypotheses: the possible causes; of those with equally much evidence the first two are stated.
        node: where it was observed.
        peer: the other end of the path, as in `Finding`.
        distinguish: the command whose result decides between causes that the evidence does not distinguish.
    """
    causes = tuple(hypotheses)
    left = sorted(
        (one for one in causes if not one.against), key=lambda one: (-len(one.supported), grade(one.fix) == DESTRUCTIVE)
    )
    explanation = tuple(_explain(one) for one in causes)
    if not left:
        nearest = "; ".join(dict.fromkeys(text for one in causes for text in one.against))
        evidence = f"{observation}: the cause is unknown ({nearest})"
        return Finding(status, evidence, distinguish, node, peer, explanation=explanation)
    best = left[0]
    rivals = [one for one in left[1:] if len(one.supported) == len(best.supported)]
    why = f" ({'; '.join(best.supported)})" if best.supported else ""
    if not rivals:
        return Finding(
            status, f"{observation}: {best.cause}{why}", best.fix, best.node or node, peer, explanation=explanation
        )
    evidence = f"{observation}: {best.cause}, or {rivals[0].cause}{why}"
    both = f"{best.fix}; or else: {rivals[0].fix}"
    fix = f"{distinguish}; then {both}" if distinguish else both
    return Finding(status, evidence, fix, node, peer, explanation=explanation)


def _explain(one: Hypothesis) -> str:
    """Return one line of ``doctor --explain``."""
    if one.against:
        return f"not: {one.cause}, because {'; '.join(one.against)}"
    supported = f", because {'; '.join(one.supported)}" if one.supported else ""
    return f"possible: {one.cause}{supported}"
