"""The mesh as the page shows it: nodes, sites, and the path of every pair (pure).

    map, reports of the agents, status of the coordinator's own agent ──build──► MeshView

A view keeps its source data, so that the next one recomputes only the paths of nodes with a new report. See
`meshray.web.edges` for the paths.

>>> view = build(mesh_map, observations, status)
>>> view.edge("n1", "n2").kind
<PathKind.DIRECT: 'direct'>
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from meshray.coordinator.observations import Rate
from meshray.model.link_labels import site_of
from meshray.model.meshmap import MeshMap
from meshray.model.node import STATIC, Node, Versions
from meshray.model.printable import printable
from meshray.model.problem import Problem
from meshray.protocol.connection import PathReport
from meshray.protocol.status import NodeStatus, RayStatus, Status, Totals
from meshray.web.edges import Category, Edge, PathCounts, ShownEdges, edge_of, pair, touched


class Observations(Protocol):
    """What the agents reported: see `meshray.coordinator.observations`."""

    def report(self, node_id: str, /) -> PathReport | None:
        """Return the last report of this node."""

    def rate(self, node_id: str, /) -> Rate | None:
        """Return the current bandwidth."""

    def rates(self, node_id: str, /) -> Sequence[Rate]:
        """Return the bandwidth of the last hour, oldest first."""


@dataclass(frozen=True)
class NodeView:
    """One node.

    Attributes:
        site: empty: not known.
        state: its state in one or two words, as in `meshray status`.
        since: when the state began, unix seconds; None: not known.
        key_since: when its WireGuard key was made, unix seconds; None: not known.
        listens: the TCP ports on which its Ray processes listen.
        rate: its current bandwidth; None: not known.
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
    rate: Rate | None
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
        paths: what the paths of each node are, by the node's id and the peer's.
        shape: changes when a path is drawn elsewhere or in another colour; see `Category`.
        news: changes when more than numbers differ, which pages show at once.
        has_status: the coordinator's own agent answered: without it, Ray's state and the problems are not known.
    """

    name: str
    revision: int
    nodes: Mapping[str, NodeView]
    sites: tuple[Site, ...]
    paths: Mapping[str, Mapping[str, Category]]
    shape: int
    news: int
    head: str
    totals: Totals
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]
    has_status: bool
    source: _Source = field(repr=False, compare=False)

    def edge(self, one: str, other: str) -> Edge | None:
        """Return the path between these two nodes; None: it is not in use."""
        return self.source.shown.edge(one, other, self.source.reports)

    def edges_of(self, node_id: str) -> Mapping[str, Edge]:
        """Return the paths of this node by the id of the peer."""
        found = ((peer, self.edge(node_id, peer)) for peer in self.paths.get(node_id, ()))
        return {peer: edge for peer, edge in found if edge is not None}

    def edges(self) -> Iterator[Edge]:
        """Yield every path once."""
        for node_id in self.paths:
            yield from (edge for edge in self.edges_of(node_id).values() if edge.a == node_id)

    def report(self, node_id: str) -> PathReport | None:
        """Return the node's report from which this view was built."""
        return self.source.reports.get(node_id)

    def rates(self, node_id: str) -> Sequence[Rate]:
        """Return the node's bandwidth during the last hour, oldest first."""
        return self.source.observations.rates(node_id)

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
    observations: Observations
    shown: ShownEdges


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
    old = previous.source if previous is not None else _Source({}, {}, observations, ShownEdges())
    source = _Source(mesh_map.nodes, reports, observations, old.shown)
    paths, recount = _paths(source, old, previous.paths if previous is not None else {})
    entries = {node.name: node for node in status.nodes} if status is not None else {}
    problems = tuple(_problems(status))
    problems_of: dict[str | None, list[Problem]] = {}
    for problem in problems:
        problems_of.setdefault(problem.node, []).append(problem)
    nodes = {}
    for node in sorted(mesh_map.nodes.values(), key=lambda node: int(node.ip)):
        before = previous.nodes.get(node.id) if previous is not None else None
        is_counted = before is not None and node.id not in recount
        counts = before.paths if before is not None and is_counted else PathCounts.of(paths.get(node.id, {}).values())
        report, entry = reports.get(node.id), entries.get(node.name)
        of_node = tuple(problems_of.get(node.name, ()))
        if (
            before is not None
            and report is old.reports.get(node.id)
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
            rate=observations.rate(node.id),
            status=entry,
            paths=counts,
            problems=of_node,
        )
        nodes[node.id] = before if before is not None and before == made else made
    view = MeshView(
        name=mesh_map.mesh.name,
        revision=mesh_map.revision,
        nodes=nodes,
        sites=_sites(nodes.values()),
        paths=paths,
        shape=(previous.shape if previous is not None else 0) + bool(recount),
        news=0,
        head=str(mesh_map.head.name) if mesh_map.head is not None else "",
        totals=status.totals if status is not None else Totals(),
        problems=problems,
        notices=status.notices if status is not None else (),
        has_status=status is not None,
        source=source,
    )
    return replace(view, news=previous.news + _is_news(view, previous)) if previous is not None else view


def _is_news(view: MeshView, previous: MeshView) -> bool:
    """Return whether more than numbers differ."""
    if (view.shape, view.revision, view.has_status) != (previous.shape, previous.revision, previous.has_status):
        return True
    if (view.sites, view.problems, view.notices) != (previous.sites, previous.problems, previous.notices):
        return True
    pairs = ((node, previous.nodes.get(node.id)) for node in view.nodes.values())
    return any(node is not before and (before is None or node.state != before.state) for node, before in pairs)


def _paths(
    source: _Source, old: _Source, before: Mapping[str, Mapping[str, Category]]
) -> tuple[Mapping[str, Mapping[str, Category]], set[str]]:
    """Return the paths by node and peer, and the nodes whose paths are to be counted again."""
    known = source.nodes
    gone, added = old.nodes.keys() - known.keys(), known.keys() - old.nodes.keys()
    paths = _Paths({key: peers for key, peers in before.items() if key in known})
    if gone:
        source.shown.forget(gone)
    for node_id in gone:
        for peer in before.get(node_id, {}).keys() & known.keys():
            paths.put(peer, node_id, None)
    pairs = touched(known.keys(), source.reports, old.reports)
    for node_id in added:
        pairs.update(pair(node_id, key) for key, report in source.reports.items() if node_id in report.paths)
    for one, other in pairs:
        edge = edge_of(one, other, source.reports) if one != other else None
        category = edge.category if edge is not None else None
        if category is not paths.all.get(one, {}).get(other):
            paths.put(one, other, category)
            paths.put(other, one, category)
    return paths.all, paths.changed | added


class _Paths:
    """The paths of a new view, which shares those of nodes without a change with the earlier view.

    Attributes:
        all: by node and peer. changed: the nodes with another path.
    """

    def __init__(self, before: dict[str, Mapping[str, Category]]) -> None:
        self.all = before
        self._own: dict[str, dict[str, Category]] = {}

    @property
    def changed(self) -> set[str]:
        return set(self._own)

    def put(self, node_id: str, peer: str, category: Category | None) -> None:
        own = self._own.get(node_id)
        if own is None:
            own = self.all[node_id] = self._own[node_id] = dict(self.all.get(node_id, {}))
        if category is None:
            own.pop(peer, None)
        else:
            own[peer] = category


def _node(
    node: Node,
    *,
    report: PathReport | None,
    rate: Rate | None,
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
        rate=rate,
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
