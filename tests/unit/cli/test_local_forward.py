"""Copying between a local connection and a node's port, with a fake of the node's side."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from meshray.cli.local_forward import join


class SlowRemote:
    """A node's side that needs time to end once it is cancelled."""

    def __init__(self) -> None:
        self.ending = asyncio.Event()
        self.is_closed = False

    async def read(self) -> AsyncIterator[bytes]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ending.set()
            await asyncio.Event().wait()
        yield b""

    async def write(self, data: bytes) -> None:
        raise AssertionError("nothing is sent")

    async def write_eof(self) -> None:
        raise AssertionError("nothing ends")

    async def close(self) -> None:
        self.is_closed = True


async def test_a_second_cancellation_still_closes_the_connection() -> None:
    near, far = socket.socketpair()
    with far:
        reader, writer = await asyncio.open_connection(sock=near)
        remote = SlowRemote()
        copying = asyncio.get_running_loop().create_task(join(reader, writer, remote))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        copying.cancel()
        await asyncio.wait_for(remote.ending.wait(), 5)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        assert remote.is_closed
        writer.close()
