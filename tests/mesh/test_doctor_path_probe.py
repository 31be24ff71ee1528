"""The results of the doctor's path probe for answers that arrive, are lost, or are too large."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

import pytest

from meshray.doctor.context import Context, Counters
from meshray.doctor.path.facts import PeerFacts
from meshray.doctor.path.probe import measure
from meshray.doctor.path.trains import measure_limit, measure_size
from meshray.home import Home
from meshray.model.path import PathKind, Transport
from meshray.protocol.status import CoordinatorStatus, NodeStatus, PathStatus, RayStatus, Status
from tests.unit.agent.sample import HUB_ENDPOINT, MAP

UP = PathStatus(PathKind.DIRECT, Transport.UDP, str(HUB_ENDPOINT), rtt_ms=1.0, loss=0.0, mtu=1420, handshake_age_s=5.0)


async def seen(tmp_path: Path, way: PathStatus, answers: list[float | None], *, largest: int = 1420) -> PeerFacts:
    """Return gpu-a's facts about the hub if probes are answered in this rhythm."""
    turns, sent = count(), 0

    async def echo(ip: IPv4Address, timeout_s: float, size: int) -> float | None:
        nonlocal sent
        sent += 80
        return answers[next(turns) % len(answers)] if size <= largest else None

    async def counters() -> Mapping[str, Counters]:
        return {"head": Counters(0, sent)}

    nodes = [
        NodeStatus("head", "127.0.0.1", "head", True, way, RayStatus()),
        NodeStatus("gpu-a", "10.99.0.2", "worker", True, PathStatus(PathKind.SELF), RayStatus()),
    ]
    facts = await measure(
        Context(
            Home(tmp_path / "state", tmp_path / "run"),
            name="gpu-a",
            mesh_map=MAP,
            status=Status("lab", 5, "gpu-a", CoordinatorStatus(True), tuple(nodes)),
            echo=echo,
            counters=counters,
            mtu_measured=lambda ip: True,
        )
    )
    assert list(facts.peers) == ["head"]
    assert facts.peers["head"].is_hub
    return facts.peers["head"]


async def test_a_good_path_is_probed_ten_times_and_at_full_size(tmp_path: Path) -> None:
    hub = await seen(tmp_path, UP, [2.0, 4.0])
    assert (hub.sent, hub.received, hub.rtt_ms) == (10, 10, 3.0)
    assert (hub.full_passes, hub.small_passes, hub.machine_answers) == (True, True, None)


async def test_one_lost_probe_is_looked_at_again(tmp_path: Path) -> None:
    hub = await seen(tmp_path, UP, [2.0, 2.0, None, 2.0, 2.0])
    assert (hub.sent, hub.received) == (30, 24)
    assert hub.full_passes is None


@pytest.mark.parametrize(("largest", "small"), [(1300, True), (1100, False)])
async def test_full_packets_that_do_not_pass(tmp_path: Path, largest: int, small: bool) -> None:
    hub = await seen(tmp_path, UP, [2.0], largest=largest)
    assert (hub.full_passes, hub.small_passes, hub.mtu_measured) == (False, small, True)


async def test_silence_is_distinguished_from_a_machine_without_an_agent(tmp_path: Path) -> None:
    # Loopback refuses the connection at once, as the machine of a frozen agent does.
    hub = await seen(tmp_path, UP, [None])
    assert (hub.sent, hub.received, hub.machine_answers, hub.sent_on) == (10, 0, True, True)
    # Bytes from a hub may have been sent by others.
    assert hub.came_in is None


async def test_without_a_path_nothing_is_sent(tmp_path: Path) -> None:
    assert (await seen(tmp_path, PathStatus(PathKind.NONE), [2.0])).sent == 0


@dataclass
class Line:
    """A simulated line that carries one packet after the other.

    Attributes:
        kbit_s: its rate.
        bucket_bytes: of a policer, which drops what exceeds it; 0: the line delays instead.
    """

    kbit_s: float
    bucket_bytes: int = 0
    free_at: float = 0.0
    level: float = 0.0
    refilled_at: float = 0.0

    async def echo(self, timeout_s: float, size: int) -> float | None:
        now = asyncio.get_running_loop().time()
        if self.bucket_bytes:
            grown = self.level + (now - self.refilled_at) * self.kbit_s * 125
            self.level, self.refilled_at = min(grown, self.bucket_bytes), now
            if self.level < size:
                await asyncio.sleep(timeout_s)
                return None
            self.level -= size
            return 2.0
        self.free_at = max(now, self.free_at) + size / (self.kbit_s * 125)
        wait_s = self.free_at - now
        await asyncio.sleep(min(wait_s, timeout_s))
        return wait_s * 1000 + 2.0 if wait_s <= timeout_s else None


@pytest.mark.parametrize(("kbit_s", "least", "most"), [(64, 60, 68), (256, 240, 280), (800, 700, 900)])
async def test_the_rate_of_a_slow_line_is_measured(kbit_s: float, least: float, most: float) -> None:
    result = await measure_size(Line(kbit_s).echo, 1420)
    assert (result.full_passes, result.small_passes, result.is_fast) == (True, True, False)
    assert least <= (result.rate_kbit_s or 0) <= most


async def test_a_busy_machine_does_not_make_a_line_slow() -> None:
    # It answers late, and several at once.
    waits = iter([200.0, 350.0, 350.1, 90.0, 90.2, 90.3, 220.0])

    async def echo(timeout_s: float, size: int) -> float | None:
        return next(waits)

    assert (await measure_size(echo, 1420)).is_fast


async def test_a_full_buffer_at_one_moment_does_not_make_a_path_narrow() -> None:
    full = asyncio.get_running_loop().time() + 0.5

    async def echo(timeout_s: float, size: int) -> float | None:
        if asyncio.get_running_loop().time() > full:
            return 2.0
        await asyncio.sleep(timeout_s)
        return None

    result = await measure_size(echo, 1420)
    assert (result.full_passes, result.small_passes) == (True, True)


async def test_a_policer_drops_without_delay_and_a_slow_buffer_delays() -> None:
    policed = await measure_limit(Line(8000, bucket_bytes=64000).echo, 1420, 0.5)
    assert policed.is_policed
    assert policed.sent * 0.3 < policed.received < policed.sent * 0.8
    # The usual bucket of a router: the first train nearly fits into it.
    assert (await measure_limit(Line(8000, bucket_bytes=100_000).echo, 1420, 0.5)).is_policed
    delayed = await measure_limit(Line(8000).echo, 1420, 0.1)
    assert delayed.received < delayed.sent
    assert not delayed.is_policed
    assert not (await measure_limit(Line(100_000).echo, 1420, 0.5)).is_policed
