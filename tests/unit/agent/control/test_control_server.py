"""An agent that ends while it is answering a client logs no error."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from meshray.agent.control.control_server import ControlServer
from meshray.agent.status.startup_progress import Emit
from meshray.protocol.control import Done, FollowProgress


def test_an_end_in_the_middle_of_an_answer_is_not_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = asyncio.Event()

    async def forever(request: FollowProgress, emit: Emit) -> Done:
        asked.set()
        await asyncio.Event().wait()
        return Done()

    async def agent() -> None:
        server = ControlServer({FollowProgress: forever}, {}, os.getuid())
        await server.open(tmp_path / "socket")
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
        writer.write(b'{"op": "progress"}\n')
        await asyncio.wait_for(asked.wait(), 5)
        server.close()
        writer.close()
        await writer.wait_closed()

    with caplog.at_level(logging.ERROR):
        asyncio.run(agent())  # Cancel what is left, as the agent's own end does.
    assert caplog.records == []
