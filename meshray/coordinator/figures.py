"""What the coordinator counts about itself, and its text for Prometheus.

>>> figures = Figures()
>>> with figures.timed("GET", "/v1/nodes"): ...
>>> figures.refused("not_admin")
"""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

#: Upper limits of the histogram's buckets, seconds: a read takes a millisecond, an enrolment a disk's flush.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
#: The maximum number of routes, and of codes, with their own counter; others count together.
_MOST_NAMES = 128
OTHER = "other"


@dataclass
class Histogram:
    """The durations of one route: how many are in each bucket, the last of which has no limit, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus counts them: each contains the smaller ones."""
        total, buckets = 0, []
        for limit, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((limit, float(total)))
        return buckets


class Figures:
    """The counters of one process of the coordinator."""

    def __init__(self) -> None:
        self.enrolments = 0
        self.durations: dict[tuple[str, str], Histogram] = {}
        self.refusals: dict[str, int] = {}

    @contextlib.contextmanager
    def timed(self, method: str, route: str) -> Iterator[None]:
        """Measure a request to this route, one of `ROUTES`, not the path that a client sent."""
        started = time.monotonic()
        try:
            yield
        finally:
            key = (method, route)
            if key not in self.durations and len(self.durations) >= _MOST_NAMES:
                key = (OTHER, OTHER)
            self.durations.setdefault(key, Histogram()).add(time.monotonic() - started)

    def refused(self, code: str) -> None:
        """Count a request that was answered with this error."""
        if code not in self.refusals and len(self.refusals) >= _MOST_NAMES:
            code = OTHER
        self.refusals[code] = self.refusals.get(code, 0) + 1


def coordinator_text(figures: Figures, *, mesh: str, connected: int, nodes: int, revision: int) -> str:
    """Return the text in Prometheus' format.

    Args:
        connected: the number of nodes whose agents are connected.
        nodes: the number of members.
        revision: the revision of the map.
    """
    # The import takes 1.5 MB and 50 ms, which a mesh without Prometheus does not need.
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import Collector, CollectorRegistry

    class _Snapshot(Collector):
        def collect(self) -> Iterable[Metric]:
            return _families(figures, mesh, (connected, nodes, revision))

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot())
    return generate_latest(registry).decode()


def _families(figures: Figures, mesh: str, numbers: tuple[int, int, int]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    named = ("mesh",)
    enrolments = CounterMetricFamily(
        "meshray_coordinator_enrolments", "Nodes that enrolled since the coordinator was started.", labels=named
    )
    enrolments.add_metric((mesh,), figures.enrolments)
    yield enrolments
    for (name, description), number in zip(
        (
            ("links", "Nodes whose agents are connected to the coordinator."),
            ("nodes", "Members of the mesh."),
            ("map_revision", "The revision of the map that the coordinator publishes."),
        ),
        numbers,
        strict=True,
    ):
        gauge = GaugeMetricFamily(f"meshray_coordinator_{name}", description, labels=named)
        gauge.add_metric((mesh,), number)
        yield gauge
    durations = HistogramMetricFamily(
        "meshray_coordinator_request_duration_seconds",
        "Time from a request's headers to its answer; WebSockets are not counted.",
        labels=("mesh", "method", "route"),
    )
    for (method, route), histogram in sorted(figures.durations.items()):
        durations.add_metric((mesh, method, route), histogram.cumulative(), histogram.sum_s)
    yield durations
    refusals = CounterMetricFamily(
        "meshray_coordinator_refused_requests", "Requests that were answered with an error.", labels=("mesh", "code")
    )
    for code, count in sorted(figures.refusals.items()):
        refusals.add_metric((mesh, code), count)
    yield refusals
