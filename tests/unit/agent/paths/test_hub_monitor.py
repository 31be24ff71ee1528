"""The addresses at which a node dials its hubs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from meshray.agent.paths.hub_monitor import HubMonitor
from meshray.agent.paths.name_resolution import Address, Names
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from tests.unit.agent.sample import MAP, WORKER_A

NAMED, LAST = Endpoint("head.example.org", 51888), Endpoint("203.0.113.14", 51888)
PRIVATE = Endpoint("192.168.1.2", 51888)


@pytest.mark.parametrize("answers", [False, True])
async def test_a_hub_is_dialled_at_the_last_address_of_its_name_until_a_name_server_answers(answers: bool) -> None:
    head = MAP.head
    assert head is not None
    mesh_map = replace(MAP, nodes={**MAP.nodes, head.id: replace(head, endpoints=(PRIVATE, NAMED))})
    tasks, resolved = Tasks(), Endpoint("203.0.113.99", 51888)
    looked_up = asyncio.Event()

    async def look_up(host: str) -> Sequence[Address]:
        looked_up.set()
        if not answers:
            await asyncio.Event().wait()
        return [ip for ip in (resolved.ip,) if ip is not None]

    names = Names(tasks, lambda ip: ip, lambda node_id: None, look_up=look_up)
    hubs = HubMonitor(mesh_map, WORKER_A.id, lambda: (NAMED, LAST, PRIVATE), names)
    assert hubs.dialled(head.id) == NAMED
    assert hubs.address(head.id) == LAST
    await looked_up.wait()
    await asyncio.sleep(0)
    assert hubs.address(head.id) == (resolved if answers else LAST)
    await tasks.close()
