"""A hub's endpoints follow those of the cloud and the interfaces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address

import pytest

from meshray.agent.paths import hub_endpoints
from meshray.agent.paths.hub_endpoints import MISSES, HubEndpoints
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint, OverlayNetwork

NETWORK = OverlayNetwork.parse("10.99.0.0/16")
OLD, NEW = IPv4Address("203.0.113.50"), IPv4Address("203.0.113.60")
OWN = [IPv4Address("10.0.0.5"), IPv4Address("10.99.0.1")]
KNOWN = (Endpoint("203.0.113.9", 51888),)


class Cloud:
    """Answer requests in turn, each when the test allows it."""

    def __init__(self, *answers: Sequence[IPv4Address]) -> None:
        self.answers = list(answers)
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def __call__(self) -> Sequence[IPv4Address]:
        self.asked.set()
        await self.may_answer.wait()
        self.may_answer.clear()
        return self.answers.pop(0)


async def reported_hosts(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the hosts at first, and after each change."""
    monkeypatch.setattr(hub_endpoints, "REFRESH_S", 0.0)
    monkeypatch.setattr(hub_endpoints, "LONGEST_PAUSE_S", 0.0)
    endpoints, changed, tasks = HubEndpoints(KNOWN, cloud, lambda: OWN), asyncio.Event(), Tasks()
    shown = [[endpoint.host for endpoint in await endpoints.read(51888, NETWORK)]]
    tasks.start(endpoints.run(changed.set), "cloud")
    while cloud.answers:
        await cloud.asked.wait()
        cloud.asked.clear()
        cloud.may_answer.set()
        await cloud.asked.wait()
        if changed.is_set():
            changed.clear()
            shown.append([endpoint.host for endpoint in await endpoints.read(51888, NETWORK)])
    await tasks.close()
    return shown


async def test_the_map_counts_until_the_cloud_was_queried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await reported_hosts(Cloud([OLD]), monkeypatch) == [["203.0.113.9"], ["203.0.113.50", "10.0.0.5"]]


async def test_an_outdated_address_of_the_cloud_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = await reported_hosts(Cloud([OLD], [OLD], [NEW]), monkeypatch)
    assert shown[1:] == [["203.0.113.50", "10.0.0.5"], ["203.0.113.60", "10.0.0.5"]]


async def test_a_cloud_that_does_not_answer_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = await reported_hosts(Cloud([OLD], *([[]] * (MISSES - 1)), [OLD]), monkeypatch)
    assert shown[1:] == [["203.0.113.50", "10.0.0.5"]]
    shown = await reported_hosts(Cloud([OLD], *([[]] * MISSES)), monkeypatch)
    assert shown[1:] == [["203.0.113.50", "10.0.0.5"], ["10.0.0.5"]]


async def test_a_machine_in_no_cloud_has_its_own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await reported_hosts(Cloud([]), monkeypatch) == [["203.0.113.9"], ["10.0.0.5"]]


async def test_a_network_change_queries_the_cloud_at_once() -> None:
    cloud = Cloud([OLD], [NEW])
    endpoints = HubEndpoints(KNOWN, cloud, lambda: OWN)
    changed = asyncio.Event()
    tasks = Tasks()
    tasks.start(endpoints.run(changed.set), "cloud")
    cloud.may_answer.set()
    await changed.wait()
    changed.clear()
    cloud.may_answer.set()
    endpoints.network_changed()
    await asyncio.wait_for(changed.wait(), 5)
    assert (await endpoints.read(7, NETWORK))[0] == Endpoint("203.0.113.60", 7)
    await tasks.close()
