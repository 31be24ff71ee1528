"""A race of connections leaves none behind that nobody uses, even if it is cancelled in the moment of success."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from meshray.client.dialer import race
from meshray.model.address import Endpoint

QUICK, SLOW = Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 2)


async def test_the_winner_is_discarded_if_the_race_is_cancelled_while_the_others_end() -> None:
    opened, ending, discarded = asyncio.Event(), asyncio.Event(), list[str]()

    async def attempt(endpoint: Endpoint) -> str:
        if endpoint == QUICK:
            await opened.wait()
            return "the winner"
        opened.set()
        try:
            await asyncio.sleep(60)
        finally:
            ending.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.2)
        raise AssertionError("it was cancelled")

    async def discard(connection: str) -> None:
        discarded.append(connection)

    racing = asyncio.get_running_loop().create_task(race((QUICK, SLOW), attempt, discard=discard))
    await ending.wait()
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert discarded == ["the winner"]


async def test_the_winner_is_returned_and_another_success_discarded() -> None:
    discarded = list[str]()

    async def attempt(endpoint: Endpoint) -> str:
        await asyncio.sleep(0)
        return endpoint.host

    async def discard(connection: str) -> None:
        discarded.append(connection)

    assert {await race((QUICK, SLOW), attempt, discard=discard), *discarded} == {QUICK.host, SLOW.host}
