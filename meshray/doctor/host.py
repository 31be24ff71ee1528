"""Checks of the machine itself, as specs: a function over one area's facts is applied to every node (pure).

What is wrong here is always a cause, so nothing here hides anything else of the same node, but for the few checks that
look at what the agent made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from meshray.doctor.facts import Facts, HostFacts
from meshray.doctor.report import SKIP, Finding, Spec

T = TypeVar("T")


def host_spec(
    area: Callable[[HostFacts], T | None], code: str, title: str, judge: Callable[[T], Finding], *after: str
) -> Spec:
    """Return the check of one area of each node; a fix on another node says where to run it."""

    def look(facts: Facts) -> Iterable[Finding]:
        here = facts.status.node if facts.status else ""
        for name, node in facts.nodes.items():
            found = area(node.host) if node.host is not None else None
            finding = Finding(SKIP, "it was not found out in time") if found is None else judge(found)
            if finding.fix and here and name != here:
                finding = replace(finding, fix=f"on {name}: {finding.fix}")
            yield replace(finding, node=name)

    return Spec(code, title, after, look)
