"""Round trips between two real sockets on loopback addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest

from meshray.agent.paths.prober import Prober

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


async def test_a_peer_that_is_there_answers(probers: tuple[Prober, Prober]) -> None:
    rtt_ms = await probers[0].probe(THERE)
    assert rtt_ms is not None
    assert 0 < rtt_ms < 1000
    assert probers[0].measured(THERE).loss == 0.0


async def test_a_large_probe_comes_back_small(probers: tuple[Prober, Prober]) -> None:
    assert await probers[0].round_trip(THERE, 1.0, size=1420) is not None


async def test_a_peer_that_is_not_there_counts_as_lost(probers: tuple[Prober, Prober]) -> None:
    assert await probers[0].probe(NOBODY, timeout_s=0.05) is None
    assert probers[0].measured(NOBODY).loss == 1.0
    assert probers[0].measured(NOBODY).rtt_ms is None


async def test_both_sides_tell_whether_they_hear_each_other(probers: tuple[Prober, Prober]) -> None:
    here, there = probers
    heard: list[tuple[IPv4Address, bool]] = []

    def on_ping(peer: IPv4Address, hears_us: bool) -> bool:
        heard.append((peer, hears_us))
        return True

    there.direct.on_ping = on_ping
    answer = await here.direct.ask(THERE_DIRECT, 1.0, hears=True)
    assert answer is not None
    assert answer.peer_hears
    assert heard == [(IPv4Address("127.0.0.1"), True)] or heard == [(HERE_DIRECT, True)]


async def test_garbage_is_not_answered_and_breaks_nothing(probers: tuple[Prober, Prober]) -> None:
    for data in (b"", b"mr", b"mr\x01short", b"mr\x02" + bytes(9), b"x" * 1400):
        probers[1].direct.datagram_received(data, (str(HERE), 9))
    assert await probers[0].direct.ask(THERE_DIRECT, 1.0) is not None


async def test_a_peer_that_was_never_asked_is_unknown(probers: tuple[Prober, Prober]) -> None:
    assert probers[0].measured(NOBODY).loss is None
