"""The mesh as the page shows it: nodes, sites, and the path of every pair (pure).

    map, reports of the agents, status of the coordinator's own agent ──build──► MeshView

A view keeps its source data, so that the next one recomputes only the paths of nodes with a new report.

>>> view = build(mesh_map, observations, status)
>>> view.edge("n1", "n2").kind
<PathKind.DIRECT: 'direct'>
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol

from meshray.coordinator.observations import Rate
from meshray.model.link_labels import site_of
from meshray.model.meshmap import MeshMap
from meshray.model.node import STATIC, Node, Versions
from meshray.model.path import PathKind, Transport
from meshray.model.printable import printable
from meshray.model.problem import Problem
from meshray.protocol.connection import PathReport, ReportedPath
from meshray.protocol.status import NodeStatus, RayStatus, Status, Totals

#: From this share of lost probes on, a path counts as lossy. The doctor warns from the same share on.
SOME_LOSS = 0.05

#: A round trip that differs by less than this share from the shown one is not shown: it is noise.
SAME_RTT = 0.1

Pair = tuple[str, str]


class Observations(Protocol):
    """What the agents reported: see `meshray.coordinator.observations`."""

    def report(self, node_id: str, /) -> PathReport | None:
        """Return the last report of this node."""

    def rates(self, node_id: str, /) -> Sequence[Rate]:
        """Return the bandwidth of the last hour, oldest first."""


class Severity(IntEnum):
    """How much attention a path needs."""

    FINE = 0  #: direct
    RELAYED = 1  #: through a hub
    LOSSY = 2  #: loses packets
    BROKEN = 3  #: no path at all


class Edge(NamedTuple):
    """The path between two nodes. If the two ends report different paths, the worse one counts.

    Attributes:
        a, b: the ids of the nodes.
        rtt_ms: round trip, milliseconds. loss: share of lost probes, 0 to 1. mtu: bytes. None: not measured.
        reason: why the path is not direct.
    """

    a: str
    b: str
    kind: PathKind
    transport: Transport | None = None
    rtt_ms: float | None = None
    loss: float | None = None
    mtu: int | None = None
    reason: str = ""

    @property
    def severity(self) -> Severity:
        """How much attention the path needs."""
        if self.kind is PathKind.NONE:
            return Severity.BROKEN
        if (self.loss or 0.0) >= SOME_LOSS:
            return Severity.LOSSY
        return Severity.RELAYED if self.kind is PathKind.HUB else Severity.FINE

    @property
    def category(self) -> tuple[PathKind, Transport | None, bool]:
        """The properties that determine where and in which colour the path is drawn."""
        return self.kind, self.transport, (self.loss or 0.0) >= SOME_LOSS

    def other(self, node_id: str) -> str:
        """Return the other end."""
        return self.b if node_id == self.a else self.a


@dataclass(frozen=True)
class PathCounts:
    """The number of paths of a node, or between two sites, by what they are."""

    direct: int = 0
    hub: int = 0
    none: int = 0
    wss: int = 0
    lossy: int = 0

    @classmethod
    def of(cls, edges: Iterable[Edge]) -> PathCounts:
        """Count these paths."""
        direct = hub = none = wss = lossy = 0
        for edge in edges:
            kind, loss = edge.kind, edge.loss
            if kind is PathKind.DIRECT:
                direct += 1
            elif kind is PathKind.HUB:
                hub += 1
                wss += edge.transport is Transport.WSS
            else:
                none += 1
            if loss and loss >= SOME_LOSS:
                lossy += 1
        return cls(direct, hub, none, wss, lossy)

    @property
    def total(self) -> int:
        """The number of all paths."""
        return self.direct + self.hub + self.none


@dataclass(frozen=True)
class NodeView:
    """One node.

    Attributes:
        site: empty: not known.
        state: its state in one or two words, as in `meshray status`.
        since: when the state began, unix seconds; None: not known.
        key_since: when its WireGuard key was made, unix seconds; None: not known.
        listens: the TCP ports on which its Ray processes listen.
        rates: the bandwidth of the last hour, oldest first.
        rx_bytes, tx_bytes: bytes that its interface received and sent; None: it sent no report.
    """

    id: str
    name: str
    ip: str
    role: str
    roles: tuple[str, ...]
    site: str
    state: str
    is_static: bool
    since: float | None
    versions: Versions
    key_since: float | None
    ray: RayStatus
    ports: Mapping[str, int]
    listens: tuple[int, ...]
    rates: tuple[Rate, ...]
    rx_bytes: int | None
    tx_bytes: int | None
    paths: PathCounts
    problems: tuple[Problem, ...]
    labels: Mapping[str, str]
    faults: Mapping[str, str]
    is_ephemeral: bool

    @property
    def tone(self) -> str:
        """``good``, ``bad``, or ``mild`` for a state that a user has chosen or that passes."""
        return _TONES.get(self.state, "mild")


_TONES = {
    "ready": "good",
    "up": "good",
    "no answer": "bad",
    "offline": "bad",
    "no Ray": "bad",
}


@dataclass(frozen=True)
class Site:
    """A group of nodes at one place; the name is empty if the place is not known."""

    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class MeshView:
    """The mesh at one moment.

    Attributes:
        nodes: by id, in the order of their addresses.
        paths: the paths of each node, by the node's id and the peer's.
        shape: changes when a path is drawn elsewhere or in another colour; see `Edge.category`.
        has_status: the coordinator's own agent answered: without it, Ray's state and the problems are not known.
    """

    name: str
    revision: int
    nodes: Mapping[str, NodeView]
    sites: tuple[Site, ...]
    paths: Mapping[str, Mapping[str, Edge]]
    shape: int
    head: str
    totals: Totals
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]
    has_status: bool
    source: _Source = field(repr=False, compare=False)

    def edge(self, one: str, other: str) -> Edge | None:
        """Return the path between these two nodes; None: it is not in use."""
        return self.paths.get(one, {}).get(other)

    def edges(self) -> Iterator[Edge]:
        """Yield every path once."""
        for node_id, edges in self.paths.items():
            yield from (edge for edge in edges.values() if edge.a == node_id)

    def named(self, name: str) -> NodeView | None:
        """Return the node of this name."""
        return next((node for node in self.nodes.values() if node.name == name), None)

    @property
    def counts(self) -> PathCounts:
        """All paths of the mesh. Each is counted at both ends."""
        ends = [node.paths for node in self.nodes.values()]
        return PathCounts(
            sum(paths.direct for paths in ends) // 2,
            sum(paths.hub for paths in ends) // 2,
            sum(paths.none for paths in ends) // 2,
            sum(paths.wss for paths in ends) // 2,
            sum(paths.lossy for paths in ends) // 2,
        )


@dataclass(frozen=True)
class _Source:
    """The data from which a view was built."""

    nodes: Mapping[str, Node]
    reports: Mapping[str, PathReport]


def build(
    mesh_map: MeshMap, observations: Observations, status: Status | None, previous: MeshView | None = None
) -> MeshView:
    """Return the view of this moment.

    Args:
        status: the status of the coordinator's own agent; None: it did not answer.
        previous: an earlier view of the mesh; its unchanged parts are used again.
    """
    reports = {
        node_id: report
        for node_id, node in mesh_map.nodes.items()
        if node.online and (report := observations.report(node_id)) is not None
    }
    old = previous.source if previous is not None else _Source({}, {})
    paths, recount = _paths(mesh_map, reports, old, previous.paths if previous is not None else {})
    entries = {node.name: node for node in status.nodes} if status is not None else {}
    problems = tuple(_problems(status))
    problems_of: dict[str | None, list[Problem]] = {}
    for problem in problems:
        problems_of.setdefault(problem.node, []).append(problem)
    nodes = {}
    for node in sorted(mesh_map.nodes.values(), key=lambda node: node.ip):
        before = previous.nodes.get(node.id) if previous is not None else None
        is_counted = before is not None and node.id not in recount
        counts = before.paths if before is not None and is_counted else PathCounts.of(paths.get(node.id, {}).values())
        report, entry = reports.get(node.id), entries.get(node.name)
        is_same_report = before is not None and report is old.reports.get(node.id)
        of_node = tuple(problems_of.get(node.name, ()))
        if (
            before is not None
            and is_same_report
            and node.id not in recount
            and node is old.nodes.get(node.id)
            and before.problems == of_node
            and (before.ray, before.since) == ((entry.ray, entry.since) if entry is not None else (RayStatus(), None))
        ):
            nodes[node.id] = before
            continue
        made = _node(
            node,
            report=report,
            rates=before.rates if before is not None and is_same_report else observations.rates(node.id),
            status=entry,
            paths=counts,
            problems=of_node,
        )
        nodes[node.id] = before if before is not None and before == made else made
    return MeshView(
        name=mesh_map.mesh.name,
        revision=mesh_map.revision,
        nodes=nodes,
        sites=_sites(nodes.values()),
        paths=paths,
        shape=(previous.shape if previous is not None else 0) + bool(recount),
        head=str(mesh_map.head.name) if mesh_map.head is not None else "",
        totals=status.totals if status is not None else Totals(),
        problems=problems,
        notices=status.notices if status is not None else (),
        has_status=status is not None,
        source=_Source(mesh_map.nodes, reports),
    )


def _paths(
    mesh_map: MeshMap,
    reports: Mapping[str, PathReport],
    old: _Source,
    before: Mapping[str, Mapping[str, Edge]],
) -> tuple[Mapping[str, Mapping[str, Edge]], set[str]]:
    """Return the paths by node and peer, and the nodes whose paths are to be counted again."""
    known = mesh_map.nodes
    paths = {key: edges for key, edges in before.items() if key in known}
    own: dict[str, dict[str, Edge]] = {}
    recount: set[str] = set()

    def put(node_id: str, peer: str, edge: Edge | None) -> None:
        # The earlier view keeps its own dictionaries; those of nodes without a change are shared.
        if node_id not in own:
            paths[node_id] = own[node_id] = dict(paths.get(node_id, {}))
        if edge is None:
            own[node_id].pop(peer, None)
        else:
            own[node_id][peer] = edge

    for gone in old.nodes.keys() - known.keys():
        for peer in before.get(gone, ()):
            if peer in known:
                put(peer, gone, None)
                recount.add(peer)
    for one, other in _touched(known, reports, old, before):
        edge, was = _edge(one, other, reports), paths.get(one, {}).get(other)
        if edge == was:
            continue
        put(one, other, edge)
        put(other, one, edge)
        if edge is None or was is None or edge.category != was.category:
            recount.update((one, other))
    return paths, recount | (known.keys() - old.nodes.keys())


def _touched(
    known: Mapping[str, Node],
    reports: Mapping[str, PathReport],
    old: _Source,
    paths: Mapping[str, Mapping[str, Edge]],
) -> set[Pair]:
    """Return the pairs whose path may have changed: those of nodes with another report, and those of new nodes."""
    pairs: set[Pair] = set()
    for node_id in reports.keys() | old.reports.keys():
        new, was = reports.get(node_id), old.reports.get(node_id)
        if new is was or node_id not in known:
            continue
        here, before = new.paths if new is not None else {}, was.paths if was is not None else {}
        edges = paths.get(node_id, {})
        changed = [peer for peer, path in here.items() if not _is_shown(path, edges.get(peer))]
        changed += [peer for peer in before if peer not in here]
        pairs.update(
            (node_id, peer) if node_id < peer else (peer, node_id)
            for peer in changed
            if peer in known and peer != node_id
        )
    for added in known.keys() - old.nodes.keys():
        pairs.update(_pair(added, key) for key, report in reports.items() if added in report.paths and key != added)
    return pairs


def _is_shown(path: ReportedPath, edge: Edge | None) -> bool:
    """Return whether an edge already shows this path of one end. Small changes of the round trip do not count."""
    if edge is None or path.kind is not edge.kind or path.transport is not edge.transport:
        return False
    if path.loss != edge.loss or path.mtu != edge.mtu or path.reason != edge.reason:
        return False
    if path.rtt_ms is None or edge.rtt_ms is None:
        return path.rtt_ms is edge.rtt_ms
    return abs(path.rtt_ms - edge.rtt_ms) <= SAME_RTT * edge.rtt_ms


def _pair(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


def _edge(one: str, other: str, reports: Mapping[str, PathReport]) -> Edge | None:
    """Return the path of a pair from the reports of both ends; None: neither reports one."""
    # A mesh of 200 nodes has 20,000 pairs, of which some thousand are computed in a second.
    near, far = reports.get(one), reports.get(other)
    here = near.paths.get(other) if near is not None else None
    there = far.paths.get(one) if far is not None else None
    if here is None or there is None:
        path = here or there
        return _as_edge(one, other, path) if path is not None else None
    if here.kind is not there.kind:
        return _as_edge(one, other, here if _ORDER[here.kind] > _ORDER[there.kind] else there)
    transports = here.transport, there.transport
    return Edge(
        one,
        other,
        here.kind if here.kind is not PathKind.SELF else PathKind.NONE,
        transports[0] if transports[0] is transports[1] else max(filter(None, transports), key=str),
        _larger(here.rtt_ms, there.rtt_ms),
        _larger(here.loss, there.loss),
        here.mtu if there.mtu is None or (here.mtu is not None and here.mtu < there.mtu) else there.mtu,
        here.reason or there.reason,
    )


def _as_edge(one: str, other: str, path: ReportedPath) -> Edge:
    # A pair has no path of kind SELF.
    kind = path.kind if path.kind is not PathKind.SELF else PathKind.NONE
    return Edge(one, other, kind, path.transport, path.rtt_ms, path.loss, path.mtu, path.reason)


def _larger(one: float | None, other: float | None) -> float | None:
    return one if other is None or (one is not None and one > other) else other


_ORDER = {PathKind.DIRECT: 0, PathKind.HUB: 1, PathKind.NONE: 2, PathKind.SELF: 2}


def _node(
    node: Node,
    *,
    report: PathReport | None,
    rates: Sequence[Rate],
    status: NodeStatus | None,
    paths: PathCounts,
    problems: tuple[Problem, ...],
) -> NodeView:
    ray = status.ray if status is not None else RayStatus()
    return NodeView(
        id=node.id,
        name=str(node.name),
        ip=str(node.ip),
        role=node.role,
        roles=tuple(sorted(node.roles)),
        site=printable(report.site if report is not None else "") or site_of(node.labels, node.seen),
        state=_state(node, ray.alive),
        is_static=STATIC in node.roles,
        since=status.since if status is not None else None,
        versions=node.versions,
        key_since=report.key_since if report is not None else None,
        ray=ray,
        ports=ray.ports,
        listens=tuple(sorted(report.listens)) if report is not None else (),
        rates=tuple(rates),
        rx_bytes=report.rx_bytes if report is not None else None,
        tx_bytes=report.tx_bytes if report is not None else None,
        paths=paths,
        problems=problems,
        labels=node.labels,
        faults=node.faults,
        is_ephemeral=node.ephemeral,
    )


def _state(node: Node, alive: bool | None) -> str:
    """Return the state in the words of `meshray status`."""
    if node.down:
        return "down"
    if node.silence:
        return "no answer"
    if STATIC in node.roles:
        return "static"
    if not node.online:
        return "offline"
    if node.drained:
        return "draining" if alive else "drained"
    return "ready" if alive else "no Ray" if alive is False else "up"


def _problems(status: Status | None) -> Iterator[Problem]:
    """Yield the problems; an agent of an older version sends sentences only."""
    if status is None:
        return
    yield from status.health or (Problem(text=text) for text in status.problems)


def _sites(nodes: Iterable[NodeView]) -> tuple[Site, ...]:
    """Return the sites by name, the one that is not known last."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(node.site, []).append(node.id)
    return tuple(Site(name, tuple(found[name])) for name in sorted(found, key=lambda name: (not name, name)))
