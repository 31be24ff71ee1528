"""Faults as data: what is broken, how, how it is repaired, and how the doctor must report it.

>>> Fault("udp-out", "path", inject, heal, code="udp_out", node="gpu-1")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

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
    """

    name: str
    group: str
    inject: Callable[[Stage], None]
    heal: Callable[[Stage], None]
    code: str
    node: str
    asked: str = ""
