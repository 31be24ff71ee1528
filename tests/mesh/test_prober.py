"""Round trips between two real sockets on loopback addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest

from meshray.agent.paths.prober import Prober
from meshray.agent.paths.samples import CLOSE_S, COMING_UP_S

HERE, THERE, NOBODY = (IPv4Address(f"127.77.0.{n}") for n in (1, 2, 3))
HERE_DIRECT, THERE_DIRECT = (IPv4Address(f"127.77.128.{n}") for n in (1, 2))


@pytest.fixture
async def probers() -> AsyncIterator[tuple[Prober, Prober]]:
    here, there = Prober(), Prober()
    await here.open(HERE, HERE_DIRECT)
    await there.open(THERE, THERE_DIRECT)
    yield here, there
    here.close()
    there.close()


async def test_a_present_peer_answers(probers: tuple[Prober, Prober]) -> None:
    rtt_ms = await probers[0].probe(THERE)
    assert rtt_ms is not None
    assert 0 < rtt_ms < 1000
    assert probers[0].measured(THERE).loss == 0.0


async def test_a_large_probe_comes_back_small(probers: tuple[Prober, Prober]) -> None:
    assert await probers[0].round_trip(THERE, 1.0, size=1420) is not None


async def test_a_missing_peer_counts_as_lost_after_its_startup_time() -> None:
    now = [0.0]
    here = Prober(lambda: now[0])
    await here.open(HERE, HERE_DIRECT)
    try:
        assert await here.probe(NOBODY, timeout_s=0.05) is None
        assert here.measured(NOBODY).loss is None
        now[0] = COMING_UP_S
        assert await here.probe(NOBODY, timeout_s=0.05) is None
        assert here.measured(NOBODY).loss == 1.0
        assert here.measured(NOBODY).rtt_ms is None
    finally:
        here.close()


async def test_a_probe_lost_on_the_old_path_does_not_count_for_the_new_one(
    probers: tuple[Prober, Prober],
) -> None:
    here, _ = probers
    await here.probe(THERE)

    async def change() -> None:
        await asyncio.sleep(0.05)
        here.path_changed(NOBODY)

    lost, _ = await asyncio.gather(here.probe(NOBODY, timeout_s=0.3), change())
    assert lost is None
    assert here.measured(NOBODY).samples == ()
    assert here._histories.get(NOBODY) is None


async def test_a_silent_peer_that_sends_a_probe_is_probed_at_once(probers: tuple[Prober, Prober]) -> None:
    here, there = probers
    here.remember(THERE, None)
    here._due[THERE] = 1e9
    assert await there.round_trip(HERE, 1.0) is not None
    assert here._due[THERE] == 0.0


async def test_silent_peers_are_probed_closely_for_some_seconds_after_a_hub_is_back() -> None:
    now = [0.0]
    here = Prober(lambda: now[0])
    for at in range(3):
        now[0] = float(at)
        here.remember(NOBODY, None)
    now[0] = 60.0
    assert here._pause_s(NOBODY) > 10
    here.probe_silent_peers()
    assert here._pause_s(NOBODY) == CLOSE_S
    now[0] += 10
    assert here._pause_s(NOBODY) > 10


async def test_a_late_answer_is_an_answer_all_the_same(probers: tuple[Prober, Prober]) -> None:
    here, _ = probers
    assert here.answered_ago_s(THERE) is None
    await here.round_trip(THERE, 1.0)
    assert (here.answered_ago_s(THERE) or 0.0) < 1.0
    assert here.unanswered_s(THERE) < 1.0


async def test_both_sides_report_whether_they_receive_packets(probers: tuple[Prober, Prober]) -> None:
    here, there = probers
    received: list[tuple[IPv4Address, bool]] = []

    def on_ping(peer: IPv4Address, hears_us: bool) -> bool:
        received.append((peer, hears_us))
        return True

    there.direct.on_ping = on_ping
    answer = await here.direct.ping(THERE_DIRECT, 1.0, hears=True)
    assert answer is not None
    assert answer.peer_hears
    assert received == [(IPv4Address("127.0.0.1"), True)] or received == [(HERE_DIRECT, True)]


async def test_garbage_is_not_answered_and_breaks_nothing(probers: tuple[Prober, Prober]) -> None:
    for data in (b"", b"mr", b"mr\x01short", b"mr\x02" + bytes(9), b"x" * 1400):
        probers[1].direct.datagram_received(data, (str(HERE), 9))
    assert await probers[0].direct.ping(THERE_DIRECT, 1.0) is not None


async def test_a_peer_that_was_never_probed_is_unknown(probers: tuple[Prober, Prober]) -> None:
    assert probers[0].measured(NOBODY).loss is None
