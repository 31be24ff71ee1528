"""The path of a pair of nodes, from the reports of both ends (pure).

    reports ──touched──► pairs whose category may differ ──edge_of──► Edge ──► its category
                                                             └──ShownEdges──► Edge with its numbers, for a page

A mesh of 200 nodes has 20,000 pairs, and 8,000 of its paths are reported in a second. Only categories are followed for
all of them; an edge with its numbers is made when a page shows it.

>>> edge_of("n1", "n2", reports).category is Category.of(PathKind.DIRECT, Transport.UDP, is_lossy=False)
True
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from meshray.model.path import PathKind, Transport
from meshray.protocol.connection import PathReport, ReportedPath

#: From this share of lost probes on, a path counts as lossy. The doctor warns from the same share on.
SOME_LOSS = 0.05

#: A round trip that differs by less than this share from the shown one is not shown: it is noise.
SAME_RTT = 0.1

#: Two nodes in the order of their ids.
Pair = tuple[str, str]


class Severity(IntEnum):
    """How much attention a path needs."""

    FINE = 0  #: direct
    RELAYED = 1  #: through a hub
    LOSSY = 2  #: loses packets
    BROKEN = 3  #: no path at all


@dataclass(frozen=True, eq=False)
class Category:
    """The properties that determine where and in which colour a path is drawn.

    Equal categories are the same object, see `of`.
    """

    kind: PathKind
    transport: Transport | None
    is_lossy: bool

    @staticmethod
    @functools.cache
    def of(kind: PathKind, transport: Transport | None, *, is_lossy: bool) -> Category:
        """Return the category."""
        return Category(kind, transport, is_lossy)

    @property
    def severity(self) -> Severity:
        """How much attention such a path needs."""
        if self.kind is PathKind.NONE:
            return Severity.BROKEN
        if self.is_lossy:
            return Severity.LOSSY
        return Severity.RELAYED if self.kind is PathKind.HUB else Severity.FINE


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
    def category(self) -> Category:
        """The properties that determine where and in which colour the path is drawn."""
        return Category.of(self.kind, self.transport, is_lossy=is_lossy(self.loss))

    @property
    def severity(self) -> Severity:
        """How much attention the path needs."""
        return self.category.severity


@dataclass(frozen=True)
class PathCounts:
    """The number of paths of a node, or between two sites, by what they are."""

    direct: int = 0
    hub: int = 0
    none: int = 0
    wss: int = 0
    lossy: int = 0

    @classmethod
    def of(cls, categories: Iterable[Category]) -> PathCounts:
        """Count these paths."""
        return cls.of_numbers(Counter(categories))

    @classmethod
    def of_numbers(cls, numbers: Mapping[Category, int]) -> PathCounts:
        """Count paths, given how many are of each category."""
        direct = hub = none = wss = lossy = 0
        for category, number in numbers.items():
            if category.kind is PathKind.DIRECT:
                direct += number
            elif category.kind is PathKind.HUB:
                hub += number
                wss += number if category.transport is Transport.WSS else 0
            else:
                none += number
            lossy += number if category.is_lossy else 0
        return cls(direct, hub, none, wss, lossy)

    @property
    def total(self) -> int:
        """The number of all paths."""
        return self.direct + self.hub + self.none


def is_lossy(loss: float | None) -> bool:
    """Return whether this share of lost probes is worth attention."""
    return loss is not None and loss >= SOME_LOSS


def pair(one: str, other: str) -> Pair:
    """Return the pair of these nodes."""
    return (one, other) if one < other else (other, one)


def touched(known: Collection[str], reports: Mapping[str, PathReport], old: Mapping[str, PathReport]) -> set[Pair]:
    """Return the pairs of known nodes whose category may differ between the old reports and these."""
    pairs: set[Pair] = set()
    for node_id in reports.keys() | old.keys():
        new, was = reports.get(node_id), old.get(node_id)
        if new is was or node_id not in known:
            continue
        here, before = new.paths if new is not None else {}, was.paths if was is not None else {}
        changed = [peer for peer, path in here.items() if not _is_alike(path, before.get(peer))]
        changed += [peer for peer in before if peer not in here]
        pairs.update(pair(node_id, peer) for peer in changed if peer in known and peer != node_id)
    return pairs


def _is_alike(path: ReportedPath, before: ReportedPath | None) -> bool:
    """Return whether two reports of one end give the same category."""
    if before is None or path.kind is not before.kind or path.transport is not before.transport:
        return False
    return path.loss == before.loss or is_lossy(path.loss) == is_lossy(before.loss)


def edge_of(one: str, other: str, reports: Mapping[str, PathReport]) -> Edge | None:
    """Return the path of a pair from the reports of both ends; None: neither reports one."""
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


class ShownEdges:
    """The edges that pages show, with one memory for all views of a mesh: a round trip changes if it is worth it."""

    def __init__(self) -> None:
        self._edges: dict[Pair, Edge] = {}

    def edge(self, one: str, other: str, reports: Mapping[str, PathReport]) -> Edge | None:
        """Return the edge of this pair; the one that was returned before, if it differs by noise only."""
        key = pair(one, other)
        new, shown = edge_of(*key, reports), self._edges.get(key)
        if new is None:
            self._edges.pop(key, None)
            return None
        if shown is not None and _is_noise(new, shown):
            return shown
        self._edges[key] = new
        return new

    def forget(self, gone: Collection[str]) -> None:
        """Forget the edges of nodes that were removed."""
        for key in [key for key in self._edges if key[0] in gone or key[1] in gone]:
            del self._edges[key]


def _is_noise(new: Edge, shown: Edge) -> bool:
    """Return whether two edges of a pair differ at most by a little of the round trip."""
    if new.kind is not shown.kind or new.transport is not shown.transport:
        return False
    if new.loss != shown.loss or new.mtu != shown.mtu or new.reason != shown.reason:
        return False
    if new.rtt_ms is None or shown.rtt_ms is None:
        return new.rtt_ms is shown.rtt_ms
    return abs(new.rtt_ms - shown.rtt_ms) <= SAME_RTT * shown.rtt_ms


def _as_edge(one: str, other: str, path: ReportedPath) -> Edge:
    # A pair has no path of kind SELF.
    kind = path.kind if path.kind is not PathKind.SELF else PathKind.NONE
    return Edge(one, other, kind, path.transport, path.rtt_ms, path.loss, path.mtu, path.reason)


def _larger(one: float | None, other: float | None) -> float | None:
    return one if other is None or (one is not None and one > other) else other


_ORDER = {PathKind.DIRECT: 0, PathKind.HUB: 1, PathKind.NONE: 2, PathKind.SELF: 2}
