"""Checks as data, and the one rule between them: a failed check hides what follows from it.

    >>> report = examine(Facts(agent_error="no agent runs on this machine"))
    >>> [check.code for check in report if check.status == FAIL]
    ['agent_running']

The same function answers in the agent (which has a status) and in the command line (when there is no agent to ask).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from meshray.errors import MeshrayError
from meshray.model.status import Status

OK = "ok"
WARN = "warn"
FAIL = "fail"
#: Hidden by a failed check, or does not apply here.
SKIP = "skip"


@dataclass(frozen=True)
class Facts:
    """What the checks look at.

    Attributes:
        enrolled: this machine is a node of some mesh.
        agent_error: why the agent cannot be asked; empty where it can.
        status: None where the agent cannot be asked.
        ray_nodes: the names of the nodes on which Ray is meant to run.
    """

    enrolled: bool = True
    agent_error: str = ""
    status: Status | None = None
    ray_nodes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Finding:
    """What a check found, about the mesh as a whole (no node) or about one node."""

    status: str
    evidence: str
    fix: str = ""
    node: str = ""


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
    evidence: str
    fix: str

    def to_json(self) -> dict[str, object]:
        """One entry of ``doctor --json``."""
        return {
            "code": self.code,
            "title": self.title,
            "status": self.status,
            "node": self.node or None,
            "evidence": self.evidence,
            "fix": self.fix,
            "depends_on": list(self.depends_on),
        }


def examine(facts: Facts, node: str | None = None) -> tuple[Check, ...]:
    """Every check in the order of what depends on what.

    Args:
        node: look at this node only (and at what concerns the whole mesh).

    Raises:
        MeshrayError: ``unknown_node``.
    """
    from meshray.doctor.checks import SPECS

    names = {entry.name for entry in facts.status.nodes} if facts.status else set()
    if node is not None and facts.status and node not in names:
        raise MeshrayError("unknown_node", f"the mesh has no node {node!r}", hint="meshray status")
    report: list[Check] = []
    roots: dict[tuple[str, str], str] = {}  # (code, node) → title of the failed check behind it
    for spec in SPECS:
        root = next((roots[code, ""] for code in spec.depends_on if (code, "") in roots), None)
        for finding in spec.look(facts) if root is None else [Finding(SKIP, f"follows from: {root}")]:
            shown = _unless_it_follows(spec, finding, roots)
            if shown.status == FAIL:
                roots[spec.code, shown.node] = spec.title
            elif root is not None:
                roots[spec.code, ""] = root
            report.append(_check(spec, shown))
    return tuple(check for check in report if node is None or check.node in ("", node))


def _unless_it_follows(spec: Spec, finding: Finding, roots: Mapping[tuple[str, str], str]) -> Finding:
    """The finding, or a skip where another check failed for the same node before."""
    root = next((roots[code, finding.node] for code in spec.depends_on if (code, finding.node) in roots), None)
    if root is None or finding.status not in (FAIL, WARN):
        return finding
    return Finding(SKIP, f"follows from: {root}", node=finding.node)


def _check(spec: Spec, finding: Finding) -> Check:
    return Check(spec.code, spec.title, spec.depends_on, finding.status, finding.node, finding.evidence, finding.fix)
