"""Any input on the control socket gets an error in bounded time, and the agent continues."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshray.agent.control.control_server import ControlServer
from meshray.agent.status.startup_progress import Emit
from meshray.client.agent import ControlClient
from meshray.errors import MeshrayError
from meshray.protocol import control as protocol
from meshray.protocol.control import MAX_REQUEST_BYTES, Request

PATIENCE_S = 15.0
QUICK_S = 0.3


class Heard(msgspec.Struct, frozen=True):
    heard: str | None = None


class EchoWord(Request[Heard], frozen=True, tag="echo"):
    word: str | None = None


class Fail(Request[Heard], frozen=True, tag="fail"):
    pass


async def echo(request: EchoWord, emit: Emit) -> Heard:
    return Heard(request.word)


async def fail(request: Fail, emit: Emit) -> Heard:
    raise ValueError("secret-part")


async def accept(request: Request[Any], emit: Emit) -> Heard:
    return Heard(request.operation())


#: Every request that the agent accepts.
OPERATIONS = [
    getattr(protocol, name)
    for name in vars(protocol)
    if isinstance(getattr(protocol, name), type)
    and issubclass(getattr(protocol, name), Request)
    and getattr(protocol, name) not in (Request, protocol.Watch)
]


@contextlib.asynccontextmanager
async def control(folder: Path) -> AsyncIterator[Path]:
    server = ControlServer(
        {EchoWord: echo, Fail: fail, **dict.fromkeys(OPERATIONS, accept)}, {}, os.getuid(), request_s=QUICK_S
    )
    await server.open(folder / "agent.sock")
    try:
        yield folder / "agent.sock"
        # It is alive, whatever the input was.
        answer = await asyncio.to_thread(ControlClient(folder / "agent.sock").request, EchoWord("still here"))
        assert answer == Heard("still here")
    finally:
        server.close()


async def exchange(path: Path, *parts: bytes, end: bool = False) -> Mapping[str, object]:
    """Return the last line of the answer to these bytes."""
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
async def test_a_bad_request_is_answered_with_its_code(tmp_path: Path, parts: tuple[bytes, ...], code: str) -> None:
    async with control(tmp_path) as path:
        assert code_of(await exchange(path, *parts)) == code


async def test_a_request_in_pieces_is_accepted_and_half_of_one_is_reported(tmp_path: Path) -> None:
    async with control(tmp_path) as path:
        pieces = [bytes([byte]) for byte in b'{"op": "echo", "word": "a"}\n']
        assert await exchange(path, *pieces) == {"ok": {"heard": "a"}}
        assert code_of(await exchange(path, b'{"op": "echo"', end=True)) == "bad_message"


async def test_random_bytes_get_an_answer_and_a_closed_connection_harms_no_other(tmp_path: Path) -> None:
    dice = random.Random(7)

    async def hang_up(path: Path, data: bytes) -> None:
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(data)
        writer.transport.abort()

    async with control(tmp_path) as path:
        lines = [dice.randbytes(dice.randrange(200)).replace(b"\n", b"") + b"\n" for _ in range(200)]
        whole = [b'{"op": "echo"}\n', b'{"op": "fail"}\n', *lines[:50]]
        await asyncio.gather(*(hang_up(path, line[: dice.randrange(len(line) + 1)]) for line in whole))
        for answer in await asyncio.gather(*(exchange(path, line) for line in lines)):
            assert code_of(answer) == "bad_message"


async def test_a_request_that_is_too_long_is_reported_to_the_command_line(tmp_path: Path) -> None:
    async with control(tmp_path) as path:
        with pytest.raises(MeshrayError) as caught:
            await asyncio.to_thread(ControlClient(path).request, EchoWord("x" * 2_000_000))
        assert caught.value.code == "bad_message"


#: Values that no field accepts completely.
VALUES: tuple[object, ...] = (
    *(None, True, 0, -1, 2**70, 1.5, "", "gpu-1", "x" * 5_000, "\x00", [], ["a"], {}, {"op": "down"}),
)


@pytest.mark.parametrize("form", OPERATIONS, ids=lambda form: form.operation())
async def test_each_field_of_each_request_is_taken_or_refused(tmp_path: Path, form: type[Request[Any]]) -> None:
    described = msgspec.json.schema(form)["$defs"][form.__name__]
    fields = {name: field for name, field in described["properties"].items() if name != "op"}
    samples: Mapping[str | None, object] = {"string": "x", "object": {}}
    valid = {name: samples.get(field.get("type"), 1) for name, field in fields.items() if name != "body"}
    async with control(tmp_path) as path:

        async def answer_to(changes: Mapping[str, object]) -> Mapping[str, object]:
            line = json.dumps({"op": form.operation(), **valid, **changes}).encode() + b"\n"
            return await exchange(path, line)

        assert await answer_to({"unknown": 1}) == {"ok": {"heard": form.operation()}}
        for name in fields:
            for value in VALUES:
                answer = await answer_to({name: value})
                try:
                    msgspec.convert({"op": form.operation(), **valid, name: value}, form)
                except msgspec.ValidationError:
                    assert code_of(answer) == "bad_message"
                else:
                    assert "ok" in answer
        for name in described.get("required", ()):
            if name != "op":
                line = json.dumps({"op": form.operation()}).encode() + b"\n"
                assert code_of(await exchange(path, line)) == "bad_message"
