"""The one picture of a mesh that text, JSON and the doctor are made from, as one node sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from meshray.model.path import Path

#: What ``status`` sums over the cluster; bytes for the last two.
TOTALS = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass(frozen=True)
class RayState:
    """One node in Ray's own node table at the head.

    Attributes:
        alive: Ray says ALIVE; None where the head's Ray could not be asked.
        resources: what the node offers, by Ray's own names; memory in bytes.
        used: what tasks, actors and objects have of it now, CPU, GPU and memory only; None: not told.
        started: when its raylet started, by that node's own clock, unix seconds; 0: not told.
        last_known: what a node that does not answer offered when Ray last listed it; None: it answers, or it was never
            listed.
    """

    alive: bool | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    used: Mapping[str, float] | None = None
    started: float = 0.0
    last_known: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, object]:
        """The ``ray`` object of ``status --json``, without the ports."""
        used = dict(self.used) if self.used is not None else None
        last_known = dict(self.last_known) if self.last_known is not None else None
        return {"alive": self.alive, "resources": dict(self.resources), "used": used, "last_known": last_known}


@dataclass(frozen=True)
class NodeStatus:
    """One node as the asked node sees it.

    Attributes:
        drained: Ray shall not run there now.
        down: nothing shall run there now.
        silent: it does not answer over the overlay, and nobody took it down.
        since: when it became so, unix seconds; None: before the asked node looked.
        ports: of its Ray, by name (`meshray.model.ray_ports.RayPorts`); empty: it runs none.
    """

    name: str
    ip: IPv4Address
    role: str
    online: bool
    path: Path
    ray: RayState
    drained: bool = False
    down: bool = False
    silent: bool = False
    since: float | None = None
    ports: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """One entry of ``nodes`` in ``status --json``."""
        return {
            "name": self.name,
            "ip": str(self.ip),
            "role": self.role,
            "online": self.online,
            "path": self.path.to_json(),
            "ray": {**self.ray.to_json(), "ports": dict(self.ports)},
            "drained": self.drained,
            "down": self.down,
            "silent": self.silent,
            "since": round(self.since, 1) if self.since is not None else None,
        }


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        code: of the doctor's check about it, where there is one.
        text: one sentence.
        node: the node that it concerns; empty: the mesh.
        fix: the next command, with the node on which to run it where that is another.
    """

    code: str = ""
    text: str = ""
    node: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, object]:
        """One entry of ``health`` in ``status --json``."""
        return {"code": self.code, "text": self.text, "node": self.node or None, "fix": self.fix}


@dataclass(frozen=True)
class Status:
    """The mesh as one node sees it.

    Attributes:
        node: the name of the node that was asked.
        health: what is not as it should be; empty when healthy.
        ray_known: whether Ray's node table could be read, or the mesh runs no Ray.
        notices: what the user may want to know and is no fault, as sentences.
    """

    mesh: str
    revision: int
    node: str
    coordinator_reachable: bool
    nodes: tuple[NodeStatus, ...]
    health: tuple[Problem, ...] = ()
    ray_known: bool = True
    notices: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """The sentences of `health`, in its order."""
        return tuple(problem.text for problem in self.health)

    def totals(self) -> Mapping[str, float | None]:
        """What the nodes that Ray calls ALIVE and that answer offer together; None where Ray could not be asked."""
        if not self.ray_known:
            return dict.fromkeys(TOTALS)
        alive = [node.ray.resources for node in self.nodes if node.ray.alive]
        return {name: sum(resources.get(name, 0.0) for resources in alive) for name in TOTALS}

    def to_json(self) -> dict[str, object]:
        """``status --json`` without the envelope."""
        return {
            "mesh": self.mesh,
            "revision": self.revision,
            "self": self.node,
            "coordinator": {"reachable": self.coordinator_reachable},
            "nodes": [node.to_json() for node in self.nodes],
            "totals": dict(self.totals()),
            "problems": list(self.problems),
            "health": [problem.to_json() for problem in self.health],
            "notices": list(self.notices),
        }
