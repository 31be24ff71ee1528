"""The agent's status, read back from JSON into the model's types (the doctor's checks work on those).

>>> status_from_json(agent.ask("status")).node
'gpu-1'
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from meshray.cli.tables import child, children
from meshray.model.address import Endpoint
from meshray.model.path import NONE, Path
from meshray.model.status import NodeStatus, RayState, Status

Object = Mapping[str, object]


def status_from_json(value: Object) -> Status:
    """The inverse of ``Status.to_json``; what is missing reads as not known."""
    problems = value.get("problems")
    revision = value.get("revision")
    return Status(
        mesh=str(value.get("mesh", "")),
        revision=revision if isinstance(revision, int) else 0,
        node=str(value.get("self", "")),
        coordinator_reachable=child(value, "coordinator").get("reachable") is True,
        nodes=tuple(_node(node) for node in children(value, "nodes")),
        problems=tuple(str(item) for item in problems) if isinstance(problems, (list, tuple)) else (),
    )


def _node(value: Object) -> NodeStatus:
    return NodeStatus(
        name=str(value.get("name", "")),
        ip=IPv4Address(str(value.get("ip"))),
        role=str(value.get("role", "")),
        online=value.get("online") is True,
        path=_path(child(value, "path")),
        ray=_ray(child(value, "ray")),
    )


def _path(value: Object) -> Path:
    transport, endpoint, mtu = value.get("transport"), value.get("endpoint"), value.get("mtu")
    return Path(
        kind=str(value.get("kind", NONE)),
        transport=str(transport) if transport else None,
        endpoint=Endpoint.parse(str(endpoint)) if endpoint else None,
        rtt_ms=_number(value, "rtt_ms"),
        loss=_number(value, "loss"),
        mtu=mtu if isinstance(mtu, int) else None,
        handshake_age_s=_number(value, "handshake_age_s"),
        rx_bytes=int(_number(value, "rx_bytes") or 0),
        tx_bytes=int(_number(value, "tx_bytes") or 0),
    )


def _ray(value: Object) -> RayState:
    alive = value.get("alive")
    resources = child(value, "resources")
    return RayState(
        alive=alive if isinstance(alive, bool) else None,
        resources={name: float(item) for name, item in resources.items() if isinstance(item, (int, float))},
    )


def _number(value: Object, key: str) -> float | None:
    item = value.get(key)
    return float(item) if isinstance(item, (int, float)) and not isinstance(item, bool) else None
