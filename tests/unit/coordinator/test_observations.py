"""The reports that the coordinator keeps, and the bandwidth computed from them."""

from __future__ import annotations

import pytest

from meshray.coordinator.observations import MOST_POINTS, POINT_S, Observations
from meshray.model.path import PathKind
from meshray.protocol.codec import WireError, encode
from meshray.protocol.connection import MOST_PATHS, PathReport, ReportedPath, read_agent


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0 // POINT_S * POINT_S

    def __call__(self) -> float:
        return self.now


def observations(clock: Clock) -> Observations:
    return Observations({"a", "b"}.__contains__, clock)


def test_only_paths_between_two_members_are_kept() -> None:
    seen = observations(Clock())
    path = ReportedPath(PathKind.DIRECT)
    seen.take("a", PathReport(paths={"a": path, "b": path, "stranger": path}))
    seen.take("stranger", PathReport(paths={"a": path}))
    report = seen.report("a")
    assert report is not None and report.paths == {"b": path}
    assert seen.report("stranger") is None
    assert list(seen.nodes) == ["a"]


def test_every_change_has_a_revision() -> None:
    seen = observations(Clock())
    seen.take("a", PathReport())
    assert seen.revision == 1
    seen.forget("b")
    assert seen.revision == 1
    seen.forget("a")
    assert seen.revision == 2


def test_bandwidth_spreads_over_the_time_between_two_reports() -> None:
    clock = Clock()
    seen, start = observations(clock), clock.now
    seen.take("a", PathReport(rx_bytes=1000, tx_bytes=0))
    clock.now += 2 * POINT_S
    seen.take("a", PathReport(rx_bytes=1000 + 6000, tx_bytes=600))
    assert [(rate.at - start, rate.rx_bytes_s, rate.tx_bytes_s) for rate in seen.rates("a")] == [
        (0.0, 100.0, 10.0),
        (POINT_S, 100.0, 10.0),
    ]
    clock.now += POINT_S / 2
    seen.take("a", PathReport(rx_bytes=7000, tx_bytes=600))
    assert seen.rates("a")[-1] == seen.rate("a") == (start + 2 * POINT_S, 0.0, 0.0)


def test_a_new_interface_starts_again_and_a_clock_set_back_is_harmless() -> None:
    clock = Clock()
    seen = observations(clock)
    seen.take("a", PathReport(rx_bytes=5000))
    clock.now += 10
    seen.take("a", PathReport(rx_bytes=100))
    assert seen.rates("a") == []
    assert seen.rate("a") is None
    clock.now += 10
    seen.take("a", PathReport(rx_bytes=200))
    assert [round(rate.rx_bytes_s, 6) for rate in seen.rates("a")] == [10.0]
    clock.now -= 3600
    seen.take("a", PathReport(rx_bytes=300))
    assert len(seen.rates("a")) == 1


def test_the_history_is_one_hour() -> None:
    clock = Clock()
    seen = observations(clock)
    for number in range(3 * MOST_POINTS):
        seen.take("a", PathReport(rx_bytes=number * 30))
        clock.now += POINT_S
    rates = seen.rates("a")
    assert len(rates) <= MOST_POINTS
    assert clock.now - rates[0].at <= MOST_POINTS * POINT_S
    assert {round(rate.rx_bytes_s, 6) for rate in rates} == {1.0}
    clock.now += 86400
    seen.take("a", PathReport(rx_bytes=10**9))
    assert len(seen.rates("a")) <= MOST_POINTS


def test_a_report_is_bounded() -> None:
    path = ReportedPath(PathKind.HUB, None, 1.5, 0.0, 1420, "x" * 200)
    whole = PathReport("lab", 1.0, tuple(range(1, 65)), 1, 2, {f"n{n}": path for n in range(MOST_PATHS)})
    assert read_agent(encode(whole)) == whole
    assert len(encode(whole)) < 96 * 1024
    for wrong in (
        '"paths": {' + ", ".join(f'"{n}": {{}}' for n in range(MOST_PATHS + 1)) + "}",
        '"listens": [0]',
        '"listens": [70000]',
        '"listens": [' + "1, " * 64 + "1]",
        '"paths": {"a": {"loss": 2}}',
        '"paths": {"a": {"reason": "' + "x" * 201 + '"}}',
        '"site": "' + "x" * 65 + '"',
        '"rx_bytes": -1',
    ):
        with pytest.raises(WireError):
            read_agent('{"type": "paths", ' + wrong + "}")
