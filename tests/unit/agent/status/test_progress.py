"""Progress: who comes late is told all of it, until the node is up."""

import asyncio
from collections.abc import Mapping

import pytest

from meshray.agent.status.progress import Progress
from meshray.errors import MeshrayError


async def test_late_and_early_followers_hear_the_same() -> None:
    progress = Progress()
    heard: list[list[Mapping[str, object]]] = [[], [], []]

    async def follow(into: list[Mapping[str, object]]) -> Mapping[str, object]:
        async def emit(event: Mapping[str, object]) -> None:
            into.append(event)

        return await progress.follow(emit)

    early = asyncio.ensure_future(follow(heard[0]))  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    progress.set("overlay", "run")
    progress.set("overlay", "run")
    await asyncio.sleep(0)
    late = asyncio.ensure_future(follow(heard[1]))  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    progress.set("overlay", "ok", "10.99.0.2")
    progress.set("ray", "skip")
    progress.finish({"mesh": "lab"})
    assert await early == await late == {"stage": "up", "state": "ok", "summary": {"mesh": "lab"}}
    assert heard[0] == heard[1]
    assert [event["state"] for event in heard[0]] == ["run", "ok", "skip"]
    # The node is up: only how each stage is.
    assert await follow(heard[2]) == await early
    assert heard[2] == heard[0][1:]


async def test_a_failed_stage_is_an_error_until_it_is_reached_all_the_same() -> None:
    progress = Progress()
    progress.fail("overlay", MeshrayError("no_handshake", "silence"))

    async def emit(event: Mapping[str, object]) -> None: ...

    with pytest.raises(MeshrayError, match="silence"):
        await progress.follow(emit)
    progress.set("overlay", "ok")
    progress.finish({})
    assert (await progress.follow(emit))["stage"] == "up"
