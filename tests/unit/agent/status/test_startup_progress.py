"""Progress: a follower that comes late receives all of it, until the node is up."""

import asyncio

import msgspec
import pytest

from meshray.agent.status.startup_progress import Progress
from meshray.errors import MeshrayError
from meshray.protocol.codec import to_json
from meshray.protocol.control import Summary, Up


async def test_late_and_early_followers_receive_the_same_events() -> None:
    progress = Progress()
    received: list[list[msgspec.Struct]] = [[], [], []]

    async def follow(into: list[msgspec.Struct]) -> Up:
        async def emit(event: msgspec.Struct) -> None:
            into.append(event)

        return await progress.follow(emit)

    early = asyncio.ensure_future(follow(received[0]))  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    progress.set("overlay", "run")
    progress.set("overlay", "run")
    await asyncio.sleep(0)
    late = asyncio.ensure_future(follow(received[1]))  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    progress.set("overlay", "ok", "10.99.0.2")
    progress.set("ray", "skip")
    progress.finish(Summary(mesh="lab"))
    assert await early == await late == Up("up", "ok", Summary(mesh="lab"))
    assert received[0] == received[1]
    assert [to_json(event)["state"] for event in received[0]] == ["run", "ok", "skip"]
    # The node is up: only the last state of each stage.
    assert await follow(received[2]) == await early
    assert received[2] == received[0][1:]


async def test_a_failed_stage_is_an_error_until_it_is_reached_all_the_same() -> None:
    progress = Progress()
    progress.fail("overlay", MeshrayError("no_handshake", "silence"))

    async def emit(event: msgspec.Struct) -> None: ...

    with pytest.raises(MeshrayError, match="silence"):
        await progress.follow(emit)
    progress.set("overlay", "ok")
    progress.finish(Summary())
    assert (await progress.follow(emit)).stage == "up"
