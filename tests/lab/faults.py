"""Faults as data: what is broken, how, how it is repaired, and how the doctor must report it.

>>> Fault("udp-out", "path", inject, heal, code="udp_out", node="gpu-1")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

#: The usual reason: a router, a server or a program that no command on a node changes.
OUTSIDE = "its cause is outside the mesh's nodes"

#: The place of a group's faults: the hosts, routers and mesh that they need.
Stage = TypeVar("Stage")


@dataclass(frozen=True)
class Fault(Generic[Stage]):
    """One fault.

    Attributes:
        group: the group of the doctor's checks: host, control, path or ray.
        inject: causes the fault.
        heal: removes it, even if `inject` only got half way.
        code: the code of the first check that must fail.
        node: the node that this check must name.
        asked: the host on which `meshray doctor` runs; empty: ``node``.
        by_hand: why the commands of the printed fix do not repair it here; empty: they do, and the suite runs them.
        leftover: removes what the printed fix adds and `heal` does not.
    """

    name: str
    group: str
    inject: Callable[[Stage], None]
    heal: Callable[[Stage], None]
    code: str
    node: str
    asked: str = ""
    by_hand: str = OUTSIDE
    leftover: Callable[[Stage], None] | None = None
