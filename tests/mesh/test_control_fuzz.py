"""Whatever comes to the control socket: an answer that says what was wrong, in bounded time, and the agent goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from meshray.agent.control.control_server import ControlServer
from meshray.agent.status.progress import Emit
from meshray.client.agent import MAX_REQUEST_BYTES, ControlClient
from meshray.errors import MeshrayError

PATIENCE_S = 15.0
QUICK_S = 0.3


async def echo(request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
    return {"heard": request.get("word")}


async def fail(request: Mapping[str, object], emit: Emit) -> Mapping[str, object]:
    raise ValueError("secret-part")


@contextlib.asynccontextmanager
async def control(folder: Path) -> AsyncIterator[Path]:
    server = ControlServer({"echo": echo, "fail": fail}, {}, os.getuid(), request_s=QUICK_S)
    await server.open(folder / "agent.sock")
    try:
        yield folder / "agent.sock"
        # It lives, whatever came.
        answer = await asyncio.to_thread(ControlClient(folder / "agent.sock").ask, "echo", word="still here")
        assert answer == {"heard": "still here"}
    finally:
        server.close()


async def said(path: Path, *parts: bytes, end: bool = False) -> Mapping[str, object]:
    """The last line that is answered to these bytes."""
    answer = json.loads(await asyncio.to_thread(say, path, parts, end))
    assert isinstance(answer, dict)
    return answer


def say(path: Path, parts: Sequence[bytes], end: bool) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(path))
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
            if end:
                connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").readline()


def code_of(answer: Mapping[str, object]) -> object:
    error = answer["error"]
    assert isinstance(error, dict)
    assert error["message"]
    assert "Traceback" not in str(error)
    return error["code"]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ((b"\n",), "bad_message"),
        ((b"\x00\xff\xfe\n",), "bad_message"),
        ((b"[1]\n",), "bad_message"),
        ((b"{}\n",), "bad_message"),
        ((b'{"op": 1}\n',), "bad_message"),
        ((b'{"op": "\\ud800"}\n',), "bad_message"),
        ((b'{"op": "' + b"x" * 33 + b'"}\n',), "bad_message"),
        ((b'{"op": "reboot"}\n',), "bad_operation"),
        ((b"[" * 60_000 + b"\n",), "bad_message"),
        ((b'{"op": "fail"}\n',), "agent_failed"),
        ((b'{"op": "ec',), "bad_message"),
        ((b"",), "bad_message"),
        ((b"x" * (MAX_REQUEST_BYTES + 10) + b"\n",), "bad_message"),
        ((b"x" * 65536,) * 100, "bad_message"),
    ],
)
async def test_what_was_wrong_is_said(tmp_path: Path, parts: tuple[bytes, ...], code: str) -> None:
    async with control(tmp_path) as path:
        assert code_of(await said(path, *parts)) == code


async def test_a_request_in_pieces_is_a_request_and_half_of_one_is_told(tmp_path: Path) -> None:
    async with control(tmp_path) as path:
        pieces = [bytes([byte]) for byte in b'{"op": "echo", "word": "a"}\n']
        assert await said(path, *pieces) == {"ok": {"heard": "a"}}
        assert code_of(await said(path, b'{"op": "echo"', end=True)) == "bad_message"


async def test_random_bytes_get_an_answer_and_who_hangs_up_harms_nobody(tmp_path: Path) -> None:
    dice = random.Random(7)

    async def hang_up(path: Path, data: bytes) -> None:
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(data)
        writer.transport.abort()

    async with control(tmp_path) as path:
        lines = [dice.randbytes(dice.randrange(200)).replace(b"\n", b"") + b"\n" for _ in range(200)]
        whole = [b'{"op": "echo"}\n', b'{"op": "fail"}\n', *lines[:50]]
        await asyncio.gather(*(hang_up(path, line[: dice.randrange(len(line) + 1)]) for line in whole))
        for answer in await asyncio.gather(*(said(path, line) for line in lines)):
            assert code_of(answer) == "bad_message"


async def test_a_request_that_is_too_long_is_told_to_the_command_line(tmp_path: Path) -> None:
    async with control(tmp_path) as path:
        with pytest.raises(MeshrayError) as caught:
            await asyncio.to_thread(ControlClient(path).ask, "echo", word="x" * 2_000_000)
        assert caught.value.code == "bad_message"
