"""Checks as data: a check, its findings, and a line of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from meshray.doctor.facts import Facts
from meshray.doctor.fix_grades import grade
from meshray.protocol.doctor import Check

OK = "ok"
WARN = "warn"
FAIL = "fail"
#: Hidden by a failed check, or not applicable here.
SKIP = "skip"


@dataclass(frozen=True)
class Finding:
    """A finding of a check about the whole mesh (no node), one node, or the path from one node to another.

    Attributes:
        evidence: what was observed, with numbers and names.
        fix: the next command, with the node on which to run it if that is another.
        node: where it was found.
        peer: the other end, if it concerns a pair: from ``node`` to ``peer``.
        repair: a key of `meshray.doctor.repairs.REPAIRS`, if meshray can repair it.
        hides_dependents: checks that depend on it cannot run, although it did not fail.
        explanation: the causes that were weighed, with the evidence for and against each, one line each.
    """

    status: str
    evidence: str
    fix: str = ""
    node: str = ""
    peer: str = ""
    repair: str = ""
    hides_dependents: bool = False
    explanation: tuple[str, ...] = ()

    @property
    def concerns(self) -> frozenset[str]:
        """The nodes that the finding concerns; empty: the mesh."""
        return frozenset({self.node, self.peer} - {""})


def fix_on(node: str, fix: str, here: str) -> str:
    """Return the fix, preceded by the node on which to run it if that is not this one (empty: not known)."""
    return f"on {node}: {fix}" if fix and here and node != here else fix


@dataclass(frozen=True)
class Spec:
    """One check: its code and title, the checks that must succeed first, and its function."""

    code: str
    title: str
    depends_on: tuple[str, ...]
    run: Callable[[Facts], Iterable[Finding]] = field(repr=False)

    def line(self, found: Finding) -> Check:
        """Return the finding as a line of the report."""
        return Check(
            code=self.code,
            title=self.title,
            status=found.status,
            node=str(found.node) or None,
            peer=str(found.peer) or None,
            evidence=found.evidence,
            fix=found.fix,
            fix_grade=grade(found.fix) if found.fix else None,
            repair=found.repair or None,
            depends_on=self.depends_on,
            explanation=found.explanation,
        )


@dataclass(frozen=True)
class Root:
    """A failed check, or one hidden by it: its code, the nodes that it concerns, and the title of the cause."""

    code: str
    concerns: frozenset[str]
    title: str

    @classmethod
    def of(cls, check: Check) -> Root:
        """Return the check as the cause of other failures."""
        return cls(check.code, frozenset(name for name in (check.node, check.peer) if name), check.title)

    def hides(self, spec: Spec, finding: Finding) -> bool:
        """Return whether the finding is only a consequence.

        A failure of the mesh hides everything after it; a failure of a node hides all findings about that node; a
        failure between two nodes hides findings about only these two.
        """
        if self.code not in spec.depends_on:
            return False
        if len(self.concerns) == 2:
            return bool(finding.concerns) and finding.concerns <= self.concerns
        return self.concerns <= finding.concerns
