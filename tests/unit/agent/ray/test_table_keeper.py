"""The interval at which Ray's node table is read, and the behaviour while the dashboard does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from meshray.agent.dependencies import RayPart
from meshray.agent.ray import table_keeper
from meshray.agent.ray.last_resources import LastResources
from meshray.agent.ray.table_keeper import TableKeeper
from meshray.linux.tasks import Tasks
from meshray.model.meshmap import MeshMap
from meshray.raynode.dashboard_client import LiveNode
from tests.unit.agent.ray.test_dead_entries import ALL, row
from tests.unit.agent.sample import MAP, WORKER_A

WITHOUT_A = replace(MAP, nodes={key: node for key, node in MAP.nodes.items() if key != WORKER_A.id})


class Ray:
    """A dashboard that answers from some moment on."""

    def __init__(self) -> None:
        self.answers_from = 0.0
        self.told: list[str] = []
        self.done = asyncio.Event()

    async def live_nodes(self) -> list[LiveNode] | None:
        return [entry for entry in ALL if entry.id not in self.told] if time.monotonic() >= self.answers_from else None

    async def unregister(self, nodes: Sequence[str], reason: str) -> bool:
        self.told += nodes
        self.done.set()
        return True


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_keeper, "_CHECK_S", 0.01)
    monkeypatch.setattr(table_keeper, "_BUSY_S", 0.1)
    monkeypatch.setattr(table_keeper, "_UNREGISTER_S", 0.05)


@pytest.mark.parametrize("silent_s", [0.0, 0.3])
async def test_a_removed_node_leaves_ray_soon_even_if_the_dashboard_was_busy(silent_s: float) -> None:
    ray, current = Ray(), [MAP]

    def the_map() -> MeshMap:
        return current[0]

    keeper = TableKeeper(the_map, LastResources())
    tasks = Tasks()
    tasks.start(keeper.run(cast(RayPart, ray)), "table")
    await asyncio.sleep(0.2)
    assert ray.told == []
    current[0], ray.answers_from = WITHOUT_A, time.monotonic() + silent_s
    keeper.check_soon()
    await asyncio.wait_for(ray.done.wait(), 5)
    assert ray.told == [row(WORKER_A).id]
    await tasks.close()
