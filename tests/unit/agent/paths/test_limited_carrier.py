"""The carrier leaves limited UDP for a relay that is much faster, and no other UDP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import cast

import pytest

from meshray.agent.paths import hub_transport_switch, udp_limit
from meshray.agent.paths.hub_monitor import HubMonitor
from meshray.agent.paths.hub_transport_switch import Carrier
from meshray.agent.paths.liveness import Liveness
from meshray.agent.paths.prober import Prober
from meshray.client.coordinator import Coordinator
from meshray.linux.clock import boot_s
from meshray.model.address import Endpoint
from meshray.wireguard.config import DeviceState
from tests.unit.agent.paths.test_udp_limit import Line
from tests.unit.agent.sample import MAP

HUB = MAP.hubs[0]


class Relay:
    """A relay's client that is connected at once, or never."""

    works = True

    def __init__(self, *arguments: object, **more: object) -> None:
        self.connected = self.works
        self.trial_is_due = False

    async def open(self) -> Endpoint:
        return Endpoint("127.0.0.1", 1000)

    async def run(self) -> None:
        await asyncio.Event().wait()

    def close(self) -> None:
        """Do nothing."""


@dataclass
class World:
    """A node whose TCP fills the path to its hub.

    Attributes:
        udp, tcp: the two lines to the hub.
        lost: the segments that TCP loses each second.
    """

    udp: Line
    tcp: Line
    lost: float = 100.0
    relayed: bool = False
    switches: int = 0
    began: float = 0.0

    def device(self) -> DeviceState:
        moved = int((boot_s() - self.began) * 8_000_000 / 8)
        peer = SimpleNamespace(rx_bytes=0, tx_bytes=moved)
        return cast(DeviceState, SimpleNamespace(peers={HUB.public_key: peer}))

    async def round_trip(self, peer: IPv4Address, timeout_s: float, *, size: int = 0) -> float | None:
        return await (self.tcp if self.relayed else self.udp).echo(timeout_s, size)

    def set_relay(self, hub_id: str, relay: Endpoint | None) -> None:
        self.relayed = relay is not None
        self.switches += 1

    async def run(self, seconds: float) -> Carrier:
        self.began = boot_s()
        hubs = SimpleNamespace(
            last_handshake=lambda device, hub_id: boot_s(),
            liveness=lambda hub_id: Liveness(),
            set_relay=self.set_relay,
            dialled=lambda hub_id: None,
            address=lambda hub_id: None,
        )
        carrier = Carrier(
            "auto",
            lambda: cast(Coordinator, None),
            lambda: HUB,
            cast(HubMonitor, hubs),
            device=self.device,
            switched=lambda hub: None,
            wake=lambda: None,
        )
        prober = cast(Prober, SimpleNamespace(is_open=True, round_trip=self.round_trip))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(carrier.run(prober), seconds)
        return carrier

    def count(self) -> int:
        return int((boot_s() - self.began) * self.lost)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look at the device at each check."""
    monkeypatch.setattr(udp_limit, "_LEAST_S", 0.2)
    monkeypatch.setattr(hub_transport_switch, "RelayClient", Relay)
    monkeypatch.setattr(Relay, "works", True)
    yield


def policed() -> Line:
    return Line(8000, bucket_bytes=10_000)


async def run(world: World, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Carrier:
    monkeypatch.setattr(hub_transport_switch, "count_lost_segments", world.count)
    return await world.run(seconds)


async def test_policed_udp_is_left_for_tcp_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_transport_switch, "TIMES_FASTER", 2.0)
    monkeypatch.setattr("meshray.agent.paths.hub_transport.TIMES_FASTER", 2.0)
    world = World(policed(), Line(1_000_000), lost=1000)
    carrier = await run(world, monkeypatch, 7.0)
    assert carrier.limit is not None
    assert 7000 <= carrier.limit.kbit_s <= 14_000
    assert (carrier.limit.relay_kbit_s or 0.0) >= 2 * carrier.limit.kbit_s
    assert world.switches == 2, "to the relay, and at the end of the agent from it"


async def test_tcp_that_is_not_faster_is_left_after_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policed(), Line(8000), lost=1000)
    carrier = await run(world, monkeypatch, 9.0)
    assert (carrier.limit, world.switches, world.relayed) == (None, 2, False)


async def test_a_relay_that_does_not_connect_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Relay, "works", False)
    world = World(policed(), Line(1_000_000), lost=1000)
    carrier = await run(world, monkeypatch, 8.0)
    assert (carrier.limit, world.switches, world.relayed) == (None, 2, False)


@pytest.mark.parametrize(
    ("line", "lost"), [(Line(10_000, buffer_s=0.2), 1000), (Line(1_000_000), 1000), (policed(), 1)]
)
async def test_other_lines_keep_udp(line: Line, lost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(replace(line), Line(1_000_000), lost=lost)
    carrier = await run(world, monkeypatch, 4.0)
    assert (carrier.limit, world.switches) == (None, 0)
    assert (line.bucket_bytes == 0) == (world.udp.sent > 0), "nothing is sent where little is lost"
