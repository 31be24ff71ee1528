"""Checks of the machine itself, as specs: each applies a function of one area's facts to every node (pure).

A fault found here is always a cause, so these checks do not hide others of the same node, except the few that examine
what the agent created.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from meshray.doctor.facts import Facts, HostFacts
from meshray.doctor.report import SKIP, Finding, Spec, fix_on

T = TypeVar("T")


def host_spec(
    area: Callable[[HostFacts], T | None], code: str, title: str, judge: Callable[[T], Finding], *after: str
) -> Spec:
    """Return the check of one area for every node; a fix on another node names the node on which to run it."""

    def run(facts: Facts) -> Iterable[Finding]:
        for name, node in facts.nodes.items():
            found = area(node.host) if node.host is not None else None
            finding = Finding(SKIP, "it was not determined in time") if found is None else judge(found)
            yield replace(finding, node=name, fix=fix_on(name, finding.fix, facts.here))

    return Spec(code, title, after, run)
