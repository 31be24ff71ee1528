"""Packet trains over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest

from meshray.agent.paths import throughput
from meshray.agent.paths.throughput import ThroughputMeter
from meshray.agent.paths.trains import Car, Report

HERE, THERE, NOBODY = (IPv4Address(f"127.0.77.{n}") for n in (1, 2, 3))
PORT = 28765


@contextlib.asynccontextmanager
async def meters(*addresses: IPv4Address) -> AsyncIterator[list[ThroughputMeter]]:
    opened = [ThroughputMeter(PORT) for _ in addresses]
    try:
        for meter, address in zip(opened, addresses, strict=True):
            await meter.open(address)
        yield opened
    finally:
        for meter in opened:
            meter.close()


async def test_loopback_is_fast_in_both_directions() -> None:
    async with meters(HERE, THERE) as (here, there):
        for rate in await asyncio.gather(here.sample(THERE), there.sample(HERE)):
            assert rate is not None
            assert rate > 2  # hundreds, on a machine that has nothing else to do


async def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "REPORT_S", 0.05)
    async with meters(HERE) as (here,):
        assert await here.sample(NOBODY) is None
    assert await here.sample(NOBODY) is None


async def test_a_train_that_lost_its_end_is_reported_and_strangers_are_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "_QUIET_S", 0.05)
    loop = asyncio.get_running_loop()
    async with meters(THERE):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind((str(HERE), PORT))
            other.setblocking(False)
            for data in (b"garbage", Car(b"12345678", 0, 16).to_bytes(), Car(b"12345678", 1, 16).to_bytes()):
                other.sendto(data, (str(THERE), PORT))
            answer = await asyncio.wait_for(loop.sock_recv(other, 100), 5)
            assert answer[:12] == Report(b"12345678", 1200, 0).to_bytes()[:12]


async def test_trains_without_end_are_bounded() -> None:
    async with meters(THERE) as (there,):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind((str(HERE), PORT))
            for number in range(500):
                other.sendto(Car(b"%08d" % number, 0, 16).to_bytes(), (str(THERE), PORT))
                await asyncio.sleep(0)
        assert len(there._trains) == len(there._ends) == throughput._MOST_TRAINS
