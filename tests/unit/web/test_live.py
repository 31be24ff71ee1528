"""The viewers of the page: shared events, slow readers, and no work without a viewer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from meshray.errors import MeshrayError
from meshray.protocol.status import Status
from meshray.web import live as live_module
from meshray.web.channel import MAX_RECENT, Viewer
from meshray.web.fragments import Topic, difference
from meshray.web.live import Live

from .fakes import FakeMesh
from .test_fragments import renderer

TOPIC = Topic("map")


class CountingMesh(FakeMesh):
    asked = 0

    async def own_status(self) -> Status | None:
        self.asked += 1
        return self.status


@asynccontextmanager
async def following() -> AsyncIterator[tuple[CountingMesh, Live]]:
    mesh = CountingMesh.of({"a": 2, "b": 1})
    assert isinstance(mesh, CountingMesh)
    mesh.connect_all()
    live = Live(mesh, renderer()._environment, "r1")
    try:
        yield mesh, live
    finally:
        await live.close()


async def change(viewer: Viewer) -> dict[str, Any]:
    """Return the next change."""
    while True:
        event = await viewer.next(5)
        assert event, "no event in 5 s"
        if event.startswith(b"event: change"):
            data = json.loads(event.split(b"data: ", 1)[1])
            assert isinstance(data, dict)
            return data


async def test_a_change_is_computed_once_and_reaches_every_viewer_within_a_second() -> None:
    async with following() as (mesh, live):
        await live.view()
        with live.following(TOPIC, live.version) as one, live.following(TOPIC, live.version) as other:
            mesh.connect("a-1", "b-1", kind="hub", rtt_ms=99.0)
            first, second = await asyncio.wait_for(asyncio.gather(one.next(1), other.next(1)), 1)
            assert first is second
            assert b"hub" in first


async def test_a_page_of_an_older_state_gets_all_and_one_of_another_release_is_loaded_again() -> None:
    async with following() as (mesh, live):
        await live.view()
        old = live.version
        mesh.connect("a-1", "b-1", kind="hub")
        await live.view()
        with live.following(TOPIC, old) as viewer:
            assert {"map", "rows", "summary", "problems"} <= set((await change(viewer))["set"])
        with live.following(TOPIC, "r0-1-1") as viewer:
            assert (await viewer.next(1)).startswith(b"event: reload")


async def test_a_page_gets_only_what_changed_since_it_was_made() -> None:
    async with following() as (mesh, live):
        await live.view()
        first, shown = live.channel(TOPIC).fragments, live.version
        mesh.connect("a-1", "b-1", kind="hub")
        await live.view()
        mesh.problem("the hub does not forward")
        live._status = mesh.status
        await live.view()
        with live.following(TOPIC, shown) as viewer:
            events = (await viewer.next(1)).split(b"\n\n")
            sent = {key for event in events if event for key in json.loads(event.split(b"data: ", 1)[1])["set"]}
            changed = difference(first, live.channel(TOPIC).fragments)
            assert sent == set(changed.elements)
            assert "problems" in sent
            assert "rows" not in sent


async def test_a_page_that_is_too_old_gets_all() -> None:
    async with following() as (mesh, live):
        await live.view()
        live.channel(TOPIC)
        shown = live.version
        for number in range(MAX_RECENT + 1):
            mesh.connect("a-1", "b-1", kind=("hub", "direct")[number % 2])
            await live.view()
            live.channel(TOPIC)
        with live.following(TOPIC, shown) as viewer:
            assert "rows" in (await change(viewer))["set"]


async def test_numbers_are_gathered_and_news_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "NUMBERS_S", 0.8)
    async with following() as (mesh, live):
        await live.view()
        with live.following(TOPIC, live.version) as viewer:
            mesh.connect("a-1", "b-1", rtt_ms=99.0)
            started = asyncio.get_running_loop().time()
            assert "99.0 ms" in json.dumps(await change(viewer))
            assert asyncio.get_running_loop().time() - started > 0.4
            monkeypatch.setattr(live_module, "NUMBERS_S", 60)
            mesh.connect("a-1", "b-1", kind="hub")
            assert "hub" in json.dumps(await change(viewer))


async def test_topics_without_a_viewer_are_forgotten() -> None:
    async with following() as (_, live):
        await live.view()
        with live.following(TOPIC, live.version):
            for number in range(3 * live_module.MAX_IDLE):
                live.channel(Topic("node", f"n-{number}"))
            assert len(live._channels) <= live_module.MAX_IDLE + 1
            assert TOPIC in live._channels


async def test_a_viewer_that_does_not_read_holds_a_bounded_number_of_events_and_then_gets_all() -> None:
    async with following() as (_, live):
        await live.view()
        with live.following(TOPIC, live.version) as viewer:
            for _ in range(1000):
                viewer.put(b"event: change\ndata: {}\n\n")
            assert viewer.is_behind
            assert "rows" in (await change(viewer))["set"]
            assert not viewer.is_behind


async def test_without_a_viewer_nothing_is_queried_or_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "TICK_S", 0.01)
    monkeypatch.setattr(live_module, "STATUS_EVERY_S", 0.02)
    async with following() as (mesh, live):
        with live.following(TOPIC, ""):
            await asyncio.sleep(0.3)
            assert mesh.asked > 3
        await asyncio.sleep(0.05)
        asked, version = mesh.asked, live.version
        mesh.connect("a-1", "b-1", rtt_ms=1.0)
        await asyncio.sleep(0.3)
        assert (mesh.asked, live.version, live.viewers) == (asked, version, 0)


async def test_the_own_agent_is_queried_at_most_once_a_second() -> None:
    async with following() as (mesh, live):
        with live.following(TOPIC, ""), live.following(Topic("matrix"), ""):
            for _ in range(20):
                await live.view()
                await asyncio.sleep(0.02)
            assert mesh.asked == 1


async def test_a_node_that_was_removed_ends_its_page() -> None:
    async with following() as (mesh, live):
        await live.view()
        with live.following(Topic("node", "b-1"), live.version) as viewer:
            mesh.remove("b-1")
            assert (await viewer.next(2)).startswith(b"event: reload")


async def test_the_number_of_viewers_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MAX_VIEWERS", 1)
    async with following() as (_, live):
        with live.following(TOPIC, ""):
            assert live.is_full
            with pytest.raises(MeshrayError, match="pages are open"), live.following(TOPIC, ""):
                pass
