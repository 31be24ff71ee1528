from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.paths.mtu import SIZES, TRIES, MtuSearch, find_mtu, largest_inner


class Underlay:
    """A path that passes no packet above `carries`, loses the first probes, and may report its size."""

    def __init__(self, carries: int, loses: int = 0, reports: bool = False, fragments: bool = False) -> None:
        self.carries = carries
        self.loses = loses
        self.reports = reports
        self.fragments = fragments
        self.probed: list[int] = []

    async def probe(self, size: int) -> bool:
        self.probed.append(size)
        self.loses -= 1
        return self.loses < 0 and (self.fragments or size <= self.carries)

    def report(self) -> int | None:
        return self.carries if self.reports else None


async def test_an_ordinary_network_costs_one_packet() -> None:
    underlay = Underlay(1420)
    assert await find_mtu(underlay.probe) == 1420
    assert underlay.probed == [1420]


@pytest.mark.parametrize("carries", [*SIZES, 1419, 1299, 1201, 9000])
async def test_a_network_that_drops_reports_is_detected(carries: int) -> None:
    underlay = Underlay(carries)
    assert await find_mtu(underlay.probe) == max(size for size in SIZES if size <= carries)
    assert len(set(underlay.probed) - {SIZES[-1]}) <= 4


async def test_a_lost_packet_is_not_too_large() -> None:
    assert await find_mtu(Underlay(1420, loses=TRIES - 1).probe) == 1420


async def test_a_temporarily_silent_path_does_not_change_the_mtu() -> None:
    """Seen while a router restarted: the full size was tried before it was back, the next one after."""
    for silent in range(TRIES, 5 * TRIES):
        assert await find_mtu(Underlay(1420, loses=silent).probe) in (None, 1420), silent


async def test_a_dead_path_does_not_change_the_mtu() -> None:
    assert await find_mtu(Underlay(0).probe) is None


@pytest.mark.parametrize("carries", [1216, 1280, 1000])
async def test_a_packet_that_passes_only_in_fragments_is_too_large(carries: int) -> None:
    underlay = Underlay(carries, reports=True, fragments=True)
    assert await find_mtu(underlay.probe, underlay.report) == max((s for s in SIZES if s <= carries), default=1200)


async def test_a_wrong_report_does_not_end_the_search() -> None:
    lies = Underlay(1420)
    assert await find_mtu(lies.probe, lambda: 68) == 1200


@given(st.integers(0, 1500), st.lists(st.integers(0, 1500), max_size=4))
def test_the_search_ends_with_what_fits(carries: int, reports: list[int]) -> None:
    search = MtuSearch()
    for asked in range(10):
        size = search.next_size()
        if size is None:
            break
        assert asked < 4
        if reports and (report := reports.pop()) >= carries:
            search = search.at_most(report)
        search = search.result(size, size <= carries)
    expected = [size for size in SIZES if size <= carries]
    assert search.mtu == (max(expected) if expected else None)


@pytest.mark.parametrize(
    ("outer", "is_v6", "inner"),
    [(1500, False, 1440), (1500, True, 1420), (1480, False, 1420), (1479, False, 1408), (1280, False, 1216),
     (1280, True, 1200)],
)  # fmt: skip
def test_wireguard_pads(outer: int, is_v6: bool, inner: int) -> None:
    assert largest_inner(outer, is_v6=is_v6) == inner
