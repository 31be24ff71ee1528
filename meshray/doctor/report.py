"""Checks as data: what a check is, what it found, and a line of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from meshray.doctor.facts import Facts
from meshray.protocol.doctor import Check

OK = "ok"
WARN = "warn"
FAIL = "fail"
#: Hidden by a failed check, or does not apply here.
SKIP = "skip"


@dataclass(frozen=True)
class Finding:
    """What a check found, about the mesh as a whole (no node), about one node, or about the way from one to another.

    Attributes:
        evidence: what was seen, with numbers and names.
        fix: the next command, with the node on which it is to be given where that is another.
        node: where it was found.
        peer: the other end, where it is about a pair: from ``node`` to ``peer``.
        repair: a key of `meshray.doctor.repairs.REPAIRS`, where meshray can mend it by itself.
        blinds: what depends on it cannot be looked at, although it did not fail.
    """

    status: str
    evidence: str
    fix: str = ""
    node: str = ""
    peer: str = ""
    repair: str = ""
    blinds: bool = False

    @property
    def concerns(self) -> frozenset[str]:
        """The nodes that it is about; empty: the mesh."""
        return frozenset({self.node, self.peer} - {""})


@dataclass(frozen=True)
class Spec:
    """One check: what it is called, what must be in order before it means anything, how it looks."""

    code: str
    title: str
    depends_on: tuple[str, ...]
    look: Callable[[Facts], Iterable[Finding]] = field(repr=False)

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
            repair=found.repair or None,
            depends_on=self.depends_on,
        )


@dataclass(frozen=True)
class Root:
    """A failed check, or what was hidden by one: its code, whom it concerns, and the title of the cause."""

    code: str
    concerns: frozenset[str]
    title: str

    @classmethod
    def of(cls, check: Check) -> Root:
        """Return the check as the cause of what fails elsewhere."""
        return cls(check.code, frozenset(name for name in (check.node, check.peer) if name), check.title)

    def hides(self, spec: Spec, finding: Finding) -> bool:
        """Whether the finding only follows.

        What fails for the mesh hides everything behind it; what fails for a node, all that concerns the node; what
        fails between two nodes, what concerns no others than these two.
        """
        if self.code not in spec.depends_on:
            return False
        if len(self.concerns) == 2:
            return bool(finding.concerns) and finding.concerns <= self.concerns
        return self.concerns <= finding.concerns
