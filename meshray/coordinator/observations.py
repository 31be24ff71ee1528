"""The agents' reports about their paths, kept in memory: the last report of each node, and its bandwidth.

    agent ──PathReport──► take ──► report(node), rates(node); revision + 1

Nothing of it is stored: after a restart of the coordinator every agent reports again at once.

>>> observations.take(node_id, report)
>>> observations.report(node_id).paths
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from meshray.protocol.connection import PathReport

#: The length of one point of the bandwidth's history, seconds, and the number of points: one hour.
POINT_S = 30.0
MOST_POINTS = 120
#: Numbers of one point in `_Bandwidth`: its start, the seconds that were observed, and the bytes in both directions.
_STRIDE = 4


class Rate(NamedTuple):
    """The mean bandwidth of a node over one point of its history.

    Attributes:
        at: the point's start, unix seconds; a multiple of `POINT_S`.
        rx_bytes_s: bytes received per second.
        tx_bytes_s: bytes sent per second.
    """

    at: float
    rx_bytes_s: float
    tx_bytes_s: float


class _Bandwidth:
    """The bandwidth of one node, from the totals in its reports."""

    def __init__(self) -> None:
        # A flat array takes 4 KiB for an hour; a list of tuples would take 30.
        self._points = array("d")
        self._last: tuple[float, int, int] | None = None

    def add(self, now: float, rx_bytes: int, tx_bytes: int) -> None:
        """Add the totals at this moment. The bytes since the last report spread evenly over the time between."""
        last, self._last = self._last, (now, rx_bytes, tx_bytes)
        # Lower totals mean another interface: what it carried before this report is not known to belong to this time.
        if last is None or now <= last[0] or rx_bytes < last[1] or tx_bytes < last[2]:
            return
        since, oldest = last[0], now - MOST_POINTS * POINT_S
        per_s = (rx_bytes - last[1]) / (now - since), (tx_bytes - last[2]) / (now - since)
        at = max(since, oldest)
        while at < now:
            start = at // POINT_S * POINT_S
            until = min(start + POINT_S, now)
            self._spread(start, until - at, *per_s)
            at = until

    def rates(self) -> list[Rate]:
        """Return the points, oldest first."""
        return [self._rate(place) for place in range(0, len(self._points), _STRIDE)]

    def last(self) -> Rate | None:
        """Return the newest point."""
        return self._rate(len(self._points) - _STRIDE) if self._points else None

    def _rate(self, place: int) -> Rate:
        start, seconds, rx_bytes, tx_bytes = self._points[place : place + _STRIDE]
        return Rate(start, rx_bytes / seconds, tx_bytes / seconds)

    def _spread(self, start: float, seconds: float, rx_bytes_s: float, tx_bytes_s: float) -> None:
        points = self._points
        if not points or points[-_STRIDE] != start:
            points.extend((start, 0.0, 0.0, 0.0))
            if len(points) > MOST_POINTS * _STRIDE:
                del points[:_STRIDE]
        points[-3] += seconds
        points[-2] += seconds * rx_bytes_s
        points[-1] += seconds * tx_bytes_s


@dataclass
class _Observed:
    report: PathReport
    bandwidth: _Bandwidth


class Observations:
    """The reports of all nodes.

    Args:
        has_node: returns whether there is a node with this id; paths to others are ignored.
        clock: unix seconds.

    Attributes:
        revision: increases with every change.
    """

    def __init__(self, has_node: Callable[[str], bool], clock: Callable[[], float] = time.time) -> None:
        self.revision = 0
        self._has_node = has_node
        self._clock = clock
        self._nodes: dict[str, _Observed] = {}

    def take(self, node_id: str, report: PathReport) -> None:
        """Record the report of a node; one of a node that was removed meanwhile is ignored."""
        if not self._has_node(node_id):
            return
        paths = {other: path for other, path in report.paths.items() if other != node_id and self._has_node(other)}
        report = msgspec.structs.replace(report, paths=paths)
        known = self._nodes.get(node_id)
        bandwidth = known.bandwidth if known is not None else _Bandwidth()
        bandwidth.add(self._clock(), report.rx_bytes, report.tx_bytes)
        self._nodes[node_id] = _Observed(report, bandwidth)
        self.revision += 1

    def forget(self, node_id: str) -> None:
        """Forget a node that was removed from the mesh."""
        if self._nodes.pop(node_id, None) is not None:
            self.revision += 1

    def report(self, node_id: str) -> PathReport | None:
        """Return the last report of a node; None if it sent none: its agent may be of an earlier version."""
        observed = self._nodes.get(node_id)
        return observed.report if observed is not None else None

    def rates(self, node_id: str) -> Sequence[Rate]:
        """Return the node's bandwidth during the last hour, oldest first; times without a report have no point."""
        observed = self._nodes.get(node_id)
        if observed is None:
            return ()
        return [rate for rate in observed.bandwidth.rates() if rate.at > self._oldest()]

    def rate(self, node_id: str) -> Rate | None:
        """Return the last of the node's `rates`."""
        observed = self._nodes.get(node_id)
        last = observed.bandwidth.last() if observed is not None else None
        return last if last is not None and last.at > self._oldest() else None

    @property
    def nodes(self) -> Collection[str]:
        """The ids of the nodes that have reported."""
        return self._nodes.keys()

    def _oldest(self) -> float:
        return self._clock() - MOST_POINTS * POINT_S
