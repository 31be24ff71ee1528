"""The texts of the page: filters of its templates (pure). The templates escape the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from meshray.model.path import PathKind, Transport
from meshray.model.printable import escaped
from meshray.model.ray_ports import AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT, PURPOSES
from meshray.web import numbers
from meshray.web.edges import Edge, PathCounts, Severity
from meshray.web.map_layout import Group
from meshray.web.view import NodeView

#: At most this many of the ports on which Ray's processes listen are shown.
_MOST_PORTS = 40
#: The map shows loss from this share on, and otherwise the round trip if it was measured.
_SHOWN_LOSS = 0.005


def node_address(name: str) -> str:
    """Return the address of a node's page."""
    return f"/nodes/{quote(name, safe='')}"


def short(text: str, length: int) -> str:
    """Return a text of at most this length."""
    text = escaped(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def path_name(edge: Edge) -> str:
    """Return the kind and transport of a path."""
    if edge.kind is PathKind.NONE:
        return "no path"
    if edge.kind is PathKind.DIRECT:
        return "direct" if edge.transport in (None, Transport.UDP) else f"direct, {edge.transport.upper()}"
    return f"hub, {edge.transport.upper()}" if edge.transport is not None else "hub"


def path_text(edge: Edge) -> str:
    """Return the measurements of a path, as one line."""
    words = [path_name(edge)]
    if edge.kind is not PathKind.NONE:
        words += [f"RTT {numbers.milliseconds(edge.rtt_ms)}", f"loss {numbers.share(edge.loss)}"]
    if edge.reason:
        words.append(escaped(edge.reason))
    return ", ".join(words)


def edge_label(edge: Edge) -> str:
    """Return the text of a path on the map."""
    if edge.kind is PathKind.NONE:
        return "no path"
    if (edge.loss or 0.0) >= _SHOWN_LOSS:
        return f"{(edge.loss or 0.0):.0%} loss"
    return numbers.milliseconds(edge.rtt_ms) if edge.rtt_ms is not None else str(edge.kind)


def edge_class(edge: Edge) -> str:
    """Return the classes of a path in style.css."""
    words = [str(edge.kind)]
    if edge.transport is Transport.WSS:
        words.append("wss")
    if edge.severity is Severity.LOSSY:
        words.append("lossy")
    return " ".join(words)


def counts_class(counts: PathCounts) -> str:
    """Return the classes of a line that represents several paths: what most of them are."""
    if counts.none * 2 > counts.total:
        return "none"
    words = ["direct" if counts.direct >= counts.hub else "hub"]
    if counts.wss * 2 > counts.total:
        words.append("wss")
    return " ".join(words)


def counts_width(counts: PathCounts) -> int:
    """Return the width of such a line, 1 to 4."""
    return 1 + sum(counts.total >= limit for limit in (5, 50, 500))


def group_name(group: Group) -> str:
    """Return the name of a site."""
    return "sites of one node" if group.is_mixed else escaped(group.name) or "site unknown"


def counts_text(counts: PathCounts) -> str:
    """Return the numbers of paths as text."""
    words = [
        f"{number} {word}"
        for number, word in (
            (counts.direct, "direct"),
            (counts.hub, "via hub"),
            (counts.none, "without a path"),
            (counts.lossy, "lossy"),
        )
        if number
    ]
    return ", ".join(words) or "no paths in use"


def used_of(name: str, used: float, whole: float) -> str:
    """Return how much of a resource is in use."""
    if name not in numbers.MEMORY:
        return f"{numbers.amount(used)} / {numbers.amount(whole)}"
    return numbers.used_size(used, whole)


def state_counts(nodes: Iterable[NodeView]) -> tuple[tuple[str, str, int], ...]:
    """Return how many nodes are in each state, most first: state, tone, number."""
    counted = Counter((node.state, node.tone) for node in nodes)
    return tuple((*key, number) for key, number in sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def used_by_all(nodes: Iterable[NodeView]) -> Mapping[str, float]:
    """Return the resources in use on all nodes."""
    used: dict[str, float] = {}
    for node in nodes:
        for name, value in (node.ray.used or {}).items():
            if name in ("CPU", "GPU", "memory", "object_store_memory"):
                used[name] = used.get(name, 0.0) + value
    return used


@dataclass(frozen=True)
class ShownPorts:
    """The ports on which Ray's processes of a node listen: those of applications, and Ray's own with their purpose."""

    open: tuple[int, ...]
    own: tuple[tuple[int, str], ...]


def ports_of(node: NodeView) -> ShownPorts:
    """Return the ports of a node's page."""
    known = {port: PURPOSES[name] for name, port in node.ray.ports.items() if name in PURPOSES}
    known.update({DASHBOARD_METRIC_PORT: "dashboard metrics", AUTOSCALER_METRIC_PORT: "autoscaler metrics"})
    first, last = node.ray.ports.get("min_worker", 1), node.ray.ports.get("max_worker", 0)
    own = tuple((port, known[port]) for port in node.listens if port in known)
    others = (port for port in node.listens if port not in known and not first <= port <= last)
    return ShownPorts(tuple(others)[:_MOST_PORTS], own[:_MOST_PORTS])


FILTERS: Mapping[str, Callable[..., Any]] = {
    "duration": numbers.duration,
    "milliseconds": numbers.milliseconds,
    "share": numbers.share,
    "rate": numbers.rate,
    "volume": numbers.volume,
    "resource": numbers.resource,
    "used_share": numbers.used_share,
    "used_of": used_of,
    "clean": escaped,
    "short": short,
    "node_address": node_address,
    "path_name": path_name,
    "edge_class": edge_class,
    "counts_class": counts_class,
    "counts_width": counts_width,
    "group_name": group_name,
    "counts_text": counts_text,
}
