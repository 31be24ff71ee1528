"""Checks as data, and the one rule between them: a failed check hides what follows from it.

    >>> report = examine(Facts(agent_error="no agent runs on this machine"))
    >>> [check.code for check in report if check.status == FAIL]
    ['agent_running']

The same function answers in the agent (which has a status) and in the command line (when there is no agent to ask).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from meshray.errors import MeshrayError

if TYPE_CHECKING:
    from meshray.doctor.facts import Facts

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


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    code: str
    title: str
    depends_on: tuple[str, ...]
    status: str
    node: str
    peer: str
    evidence: str
    fix: str
    repair: str

    @property
    def root(self) -> _Root:
        """As the cause of what fails elsewhere."""
        return _Root(self.code, frozenset({self.node, self.peer} - {""}), self.title)

    @classmethod
    def from_json(cls, entry: Mapping[str, object]) -> Check:
        """The inverse of `to_json`."""
        names = ("code", "title", "status", "node", "peer", "evidence", "fix", "repair")
        texts = {name: str(entry.get(name) or "") for name in names}
        depends_on = entry.get("depends_on")
        return cls(**texts, depends_on=tuple(map(str, depends_on)) if isinstance(depends_on, list) else ())

    def to_json(self) -> dict[str, object]:
        """One entry of ``doctor --json``."""
        return {
            "code": self.code,
            "title": self.title,
            "status": self.status,
            "node": self.node or None,
            "peer": self.peer or None,
            "evidence": self.evidence,
            "fix": self.fix,
            "repair": self.repair or None,
            "depends_on": list(self.depends_on),
        }


@dataclass(frozen=True)
class _Root:
    """A failed check, or what was hidden by one: its code, whom it concerns, and the title of the cause."""

    code: str
    concerns: frozenset[str]
    title: str

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


def examine(
    facts: Facts, node: str | None = None, specs: tuple[Spec, ...] | None = None, known: Iterable[Check] = ()
) -> tuple[Check, ...]:
    """Every check in the order of what depends on what.

    Without an agent nothing but this machine was looked at, so what fails there hides all that depends on it.

    Args:
        node: look at this node only (and at what concerns the whole mesh).
        specs: other checks than `meshray.doctor.specs.SPECS`.
        known: of an earlier report: what failed there hides what follows from it here.

    Raises:
        MeshrayError: ``unknown_node``.
    """
    if specs is None:
        from meshray.doctor.specs import SPECS

        specs = SPECS
    names = {entry.name for entry in facts.status.nodes} if facts.status else set()
    if node is not None and facts.status and node not in names:
        raise MeshrayError("unknown_node", f"the mesh has no node {node!r}", hint="meshray status")
    from meshray.doctor.known import take_over

    report: list[Check] = []
    roots = [check.root for check in known if check.status == FAIL]
    for spec in specs:
        of_mesh = next((root for root in roots if not root.concerns and root.code in spec.depends_on), None)
        if of_mesh is not None:
            # Without what it depends on it cannot even be looked at.
            roots.append(_Root(spec.code, frozenset(), of_mesh.title))
            report.append(_check(spec, Finding(SKIP, f"follows from: {of_mesh.title}")))
            continue
        found = []
        for finding in take_over(spec.code, list(spec.look(facts)), facts):
            root = next((root for root in roots if root.hides(spec, finding)), None)
            concerns = frozenset[str]() if facts.agent_error else finding.concerns
            if root is not None and finding.status in (FAIL, WARN):
                found.append(_Root(spec.code, concerns, root.title))
                finding = replace(finding, status=SKIP, evidence=f"follows from: {root.title}", fix="", repair="")  # noqa: PLW2901
            elif finding.status == FAIL or finding.blinds:
                found.append(_Root(spec.code, concerns, spec.title))
            report.append(_check(spec, finding))
        roots += found
    return tuple(check for check in report if node is None or not check.node or node in (check.node, check.peer))


def _check(spec: Spec, finding: Finding) -> Check:
    return Check(
        spec.code,
        spec.title,
        spec.depends_on,
        finding.status,
        finding.node,
        finding.peer,
        finding.evidence,
        finding.fix,
        finding.repair,
    )
