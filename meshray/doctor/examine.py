"""Run the checks in the order of their dependencies: a failed check hides its consequences.

    >>> report = examine(Facts(agent_error="no agent runs on this machine"))
    >>> [check.code for check in report if check.status == FAIL]
    ['agent_running']

The agent, which has a status, and the command line, if no agent runs, both call it.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshray.doctor.check_order import SPECS
from meshray.doctor.facts import Facts
from meshray.doctor.known_faults import add_reported
from meshray.doctor.report import FAIL, SKIP, WARN, Finding, Root, Spec
from meshray.errors import MeshrayError
from meshray.protocol.doctor import Check


def examine(
    facts: Facts, node: str | None = None, specs: tuple[Spec, ...] = SPECS, known: Iterable[Check] = ()
) -> tuple[Check, ...]:
    """Run every check in the order of their dependencies.

    Without an agent only this machine was examined, so a failure there hides all checks that depend on it.

    Args:
        node: check only this node (and what concerns the whole mesh).
        specs: the checks to run, each after those that it depends on.
        known: an earlier report, whose failures hide their consequences here.

    Raises:
        MeshrayError: ``unknown_node``.
    """
    names = {entry.name for entry in facts.status.nodes} if facts.status else set()
    if node is not None and facts.status and node not in names:
        raise MeshrayError("unknown_node", f"the mesh has no node {node!r}", hint="meshray status")
    report: list[Check] = []
    roots = [Root.of(check) for check in known if check.status == FAIL]
    for spec in specs:
        of_mesh = next((root for root in roots if not root.concerns and root.code in spec.depends_on), None)
        if of_mesh is not None:
            # It cannot be checked without what it depends on.
            roots.append(Root(spec.code, frozenset(), of_mesh.title))
            report.append(spec.line(Finding(SKIP, f"follows from: {of_mesh.title}")))
            continue
        found = []
        for finding in add_reported(spec.code, list(spec.run(facts)), facts):
            root = next((root for root in roots if root.hides(spec, finding)), None)
            concerns = frozenset[str]() if facts.agent_error else finding.concerns
            if root is not None and finding.status in (FAIL, WARN):
                found.append(Root(spec.code, concerns, root.title))
                hidden = Finding(SKIP, f"follows from: {root.title}", node=finding.node, peer=finding.peer)
                report.append(spec.line(hidden))
                continue
            if finding.status == FAIL or finding.hides_dependents:
                found.append(Root(spec.code, concerns, spec.title))
            report.append(spec.line(finding))
        roots += found
    return tuple(check for check in report if node is None or not check.node or node in (check.node, check.peer))
