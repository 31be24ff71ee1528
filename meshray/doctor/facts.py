"""What nodes tell the doctor of themselves: plain values that travel as JSON.

A group of facts is a frozen dataclass whose fields are JSON's own kinds (text, numbers, truth values, None),
enumerations of texts, tuples of them, mappings from texts to them, and further such dataclasses. Each has a default: an
older or newer node may leave it out, or say more.

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
from meshray.doctor.machine.facts import MachineFacts
from meshray.doctor.path.facts import PathFacts
from meshray.doctor.ray.facts import RayFacts
from meshray.doctor.routes.facts import RoutingFacts
from meshray.model.problem import Problem
from meshray.protocol.status import Status

T = TypeVar("T")


@dataclass(frozen=True)
class HostFacts:
    """Of one node; what is None was not found out in time."""

    device: DeviceFacts | None = None
    machine: MachineFacts | None = None
    routing: RoutingFacts | None = None
    firewall: FirewallFacts | None = None


@dataclass(frozen=True)
class NodeFacts:
    """What one node found out; a group that is None was not looked at.

    Attributes:
        complaints: what the node's parts could not do, as its own status says it.
    """

    name: str = ""
    host: HostFacts | None = None
    path: PathFacts | None = None
    control: ControlFacts | None = None
    ray: RayFacts | None = None
    complaints: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the checks look at.

    Attributes:
        enrolled: this machine is a node of some mesh.
        agent_error: why the agent cannot be asked; empty where it can.
        agent_repair: what would let the agent run, a key of `meshray.doctor.repairs.REPAIRS`.
        allowed_by: the command with which it could be asked, where it is only this user who may not.
        status: the mesh as this node sees it; None where the agent cannot be asked.
        ray_nodes: the names of the nodes on which Ray is meant to run.
        nodes: what the nodes that were asked found out, by name; this node is among them.
        silent: the nodes that were asked and did not answer, with the reason.
        heard: those among the silent whose machines answered over the overlay all the same.
        not_asked: why no other node was asked; empty where they were.
        deep: what the Ray program of ``--deep`` saw; None: it was not asked for.
    """

    enrolled: bool = True
    agent_error: str = ""
    agent_repair: str = "agent"
    allowed_by: str = ""
    status: Status | None = None
    ray_nodes: frozenset[str] = frozenset()
    nodes: Mapping[str, NodeFacts] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    heard: frozenset[str] = frozenset()
    not_asked: str = ""
    deep: DeepFacts | None = None


def encode(facts: Any) -> dict[str, Any]:
    """The JSON form of a group of facts, or of `NodeFacts`."""
    return dataclasses.asdict(facts)


def decode(kind: type[T], data: object) -> T:
    """The inverse of `encode`. What is missing or of the wrong kind gets its default: facts come from elsewhere."""
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
