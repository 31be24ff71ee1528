"""The facts that nodes report to the doctor: plain values that travel as JSON.

A group of facts is a frozen dataclass whose fields are JSON's own kinds (text, numbers, truth values, None),
enumerations of texts, tuples of them, mappings from texts to them, and further such dataclasses. Each has a default: an
older or newer node may omit it, or report more.

    >>> @dataclass(frozen=True)
    ... class Example:
    ...     name: str = ""
    ...     ages: tuple[float, ...] = ()
    >>> decode(Example, encode(Example("a", (1.0,))) | {"unheard": "of"})
    Example(name='a', ages=(1.0,))
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from meshray.doctor.control.facts import ControlFacts
from meshray.doctor.device.facts import DeviceFacts
from meshray.doctor.firewall.facts import FirewallFacts
from meshray.doctor.job.facts import DeepFacts
from meshray.doctor.lan.facts import LanFacts
from meshray.doctor.machine.facts import MachineFacts
from meshray.doctor.outer.facts import OuterFacts
from meshray.doctor.path.facts import PathFacts
from meshray.doctor.pod.facts import PodFacts
from meshray.doctor.ray.facts import RayFacts
from meshray.doctor.routes.facts import RoutingFacts
from meshray.model.problem import Problem
from meshray.protocol.api import SilentConnection
from meshray.protocol.status import Status

T = TypeVar("T")


@dataclass(frozen=True)
class HostFacts:
    """The host facts of one node; values that were not found out in time are None."""

    device: DeviceFacts | None = None
    machine: MachineFacts | None = None
    routing: RoutingFacts | None = None
    firewall: FirewallFacts | None = None
    pod: PodFacts | None = None
    outer: OuterFacts | None = None
    lan: LanFacts | None = None


@dataclass(frozen=True)
class NodeFacts:
    """The facts of one node; a group that is None was not examined.

    Attributes:
        complaints: the failures of the node's parts, as in its own status.
    """

    name: str = ""
    host: HostFacts | None = None
    path: PathFacts | None = None
    control: ControlFacts | None = None
    ray: RayFacts | None = None
    complaints: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Facts:
    """The input of the checks.

    Attributes:
        enrolled: this machine is a node of a mesh.
        agent_error: why the agent cannot be asked; empty if it can.
        agent_repair: the repair that lets the agent run, a key of `meshray.doctor.repairs.REPAIRS`.
        agent_fix: the command that lets it answer, if that is known.
        allowed_by: the command that may ask it, if only this user may not.
        status: this node's status of the mesh; None if the agent cannot be asked.
        ray_nodes: the names of the nodes on which Ray should run.
        nodes: the facts of the nodes that were asked, this one included, by name.
        silent: the nodes that were asked and did not answer, with the reason.
        connections: of those from whose agents nothing came, not even an answer to a ping.
        answering_machines: the silent ones whose machines nevertheless answered over the overlay.
        not_queried: why no other node was asked; empty if they were.
        deep: the results of the Ray program of ``--deep``; None: not requested.
    """

    enrolled: bool = True
    agent_error: str = ""
    agent_repair: str = "agent"
    agent_fix: str = ""
    allowed_by: str = ""
    status: Status | None = None
    ray_nodes: frozenset[str] = frozenset()
    nodes: Mapping[str, NodeFacts] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    connections: Mapping[str, SilentConnection] = field(default_factory=dict)
    answering_machines: frozenset[str] = frozenset()
    not_queried: str = ""
    deep: DeepFacts | None = None

    @property
    def here(self) -> str:
        """The name of the node that was asked; empty: not known."""
        return self.status.node if self.status is not None else ""


def encode(facts: Any) -> dict[str, Any]:
    """Return the JSON form of a group of facts, or of `NodeFacts`."""
    return dataclasses.asdict(facts)


def decode(kind: type[T], data: object) -> T:
    """Decode what `encode` returns. Missing values and those of a wrong type get their defaults: nodes may differ."""
    known = data if isinstance(data, Mapping) else {}
    hints = typing.get_type_hints(kind)
    values = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        if item.name in known:
            try:
                values[item.name] = _read(hints[item.name], known[item.name])
            except (TypeError, ValueError, OverflowError):
                continue
    return kind(**values)


def _read(kind: Any, value: object) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _read(next(one for one in arguments if one is not type(None)), value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_read(arguments[0], item) for item in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(key): _read(arguments[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return decode(typing.cast(Any, kind), value)
    return _read_one(kind, value)


def _read_one(kind: Any, value: object) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind in (str, int, bool) and type(value) is kind:
        return value
    raise TypeError(f"{value!r} is no {kind}")
