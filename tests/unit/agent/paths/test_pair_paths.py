"""The effect of probes on a direct path in use."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from meshray.agent.paths.name_resolution import Names
from meshray.agent.paths.pair_paths import Pairs
from meshray.agent.paths.prober import Answer, Prober
from meshray.agent.state import NodeState
from meshray.home import Home
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from tests.unit.agent.sample import MAP, WORKER_A, WORKER_B, enrolment

OTHER = replace(WORKER_B, endpoints=(Endpoint("198.51.100.7", 51888),))
ME = replace(WORKER_A, endpoints=(Endpoint("198.51.100.8", 51888),))
WITH_ENDPOINTS = replace(MAP, nodes={**MAP.nodes, ME.id: ME, OTHER.id: OTHER})


class Probes:
    """Probes whose answers a test gives."""

    def __init__(self) -> None:
        self.direct = self
        self.pings: list[asyncio.Future[Answer | None]] = []
        self.remembered: list[float | None] = []

    async def ping(self, address: IPv4Address, timeout_s: float, *, hears: bool, size: int) -> Answer | None:
        self.pings.append(asyncio.get_running_loop().create_future())
        return await self.pings[-1]

    def remember(self, peer: IPv4Address, rtt_ms: float | None) -> None:
        self.remembered.append(rtt_ms)

    def path_changed(self, peer: IPv4Address) -> None:
        self.remembered.clear()


async def test_probes_lost_while_a_path_is_tried_are_not_its_loss(tmp_path: Path) -> None:
    probes, tasks = Probes(), Tasks()
    state = NodeState(Home(tmp_path, tmp_path), enrolment(ME), WITH_ENDPOINTS)
    names = SimpleNamespace(prepare=lambda node_id, endpoints: None)
    pairs = Pairs(state, cast(Prober, probes), cast(Names, names), lambda message: None, all_wanted=lambda: True)
    pairs.punch(OTHER.id)
    attempt = pairs.path(OTHER).attempt

    async def probe(answer: Answer | None, number: int) -> None:
        probes.pings[number].set_result(answer)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    for _ in range(2):
        tasks.start(pairs._probe(OTHER, attempt), "probe")
    await asyncio.sleep(0)
    await probe(Answer(1.0, peer_hears=True), 1)
    assert pairs.path(OTHER).carries
    await probe(None, 0)
    assert probes.remembered == []
    tasks.start(pairs._probe(OTHER, attempt), "probe")
    await asyncio.sleep(0)
    await probe(None, 2)
    assert probes.remembered == [None], "it was sent over the path in use"
    await tasks.close()
