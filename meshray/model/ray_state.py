"""One row of Ray's own node table at the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Waiting:
    """Tasks and actors that wait for the same resources.

    Attributes:
        resources: what each of them needs, by Ray's own names; memory in bytes.
        count: how many wait.
    """

    resources: Mapping[str, float]
    count: int


@dataclass(frozen=True)
class RayState:
    """One node in Ray's own node table at the head.

    Attributes:
        alive: whether Ray lists it as ALIVE.
        resources: the node's resources, by Ray's own names; memory in bytes.
        used: the part of them in use by tasks, actors and objects, CPU, GPU and memory only; None: not known.
        waiting: in the row of the head's node: what tasks and actors of the whole cluster wait for.
        started: when its raylet started, by that node's own clock, unix seconds; 0: not known.
    """

    alive: bool | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    used: Mapping[str, float] | None = None
    started: float = 0.0
    waiting: tuple[Waiting, ...] = ()
