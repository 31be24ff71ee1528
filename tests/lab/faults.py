"""Faults as data: what is broken, how, how it is mended, and what the doctor must call it.

>>> Fault("udp-out", "path", inject, heal, code="udp_out", node="gpu-1")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

#: Where it happens: the hosts, routers and mesh that a group's faults need.
Stage = TypeVar("Stage")


@dataclass(frozen=True)
class Fault(Generic[Stage]):
    """One thing that breaks.

    Attributes:
        group: of the doctor's checks: host, control, path or ray.
        inject: breaks it.
        heal: takes that back; also where `inject` got half way only.
        code: of the first check that must fail.
        node: that this check must name.
        asked: on which host `meshray doctor` is given; empty: on ``node``.
    """

    name: str
    group: str
    inject: Callable[[Stage], None]
    heal: Callable[[Stage], None]
    code: str
    node: str
    asked: str = ""
