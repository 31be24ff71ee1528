"""A join asks a silent coordinator again: behind a real one, a front that answers only later connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.client import first_contact
from meshray.client.coordinator import enrol
from meshray.client.dialer import TimedOutError
from meshray.errors import UnreachableError
from meshray.model.address import Endpoint, NodeName
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import PrivateKey
from meshray.model.node import Versions
from meshray.model.token import Token

from .coordinator_harness import Running, running_mesh

SHORT_S, LONG_S = 0.5, 20.0


@contextlib.asynccontextmanager
async def busy_front(port: int, unanswered: int) -> AsyncIterator[Endpoint]:
    """Accept every connection, and forward those after the first few to the port."""
    accepted = 0

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        if accepted <= unanswered:
            await reader.read()
            writer.close()
            return
        there, towards = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, towards), pump(there, writer))

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    try:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()


def asking(token: Token, key: PrivateKey) -> EnrolRequest:
    return EnrolRequest(
        token.mesh_id, token.token_id, token.secret, NodeName("gpu"), False, key.public(), Versions("0.1.0"), False
    )


def port_of(mesh: Running) -> int:
    return mesh.server.port


async def test_a_busy_coordinator_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_contact, "TIMEOUTS_S", (SHORT_S, SHORT_S, LONG_S))
    key, said = PrivateKey.generate(), list[str]()
    async with running_mesh(tmp_path) as mesh, busy_front(port_of(mesh), 2) as front:
        token = replace(mesh.token, coordinators=(front,))
        answer, endpoint = await enrol(token, asking(token, key), key, on_wait=said.append)
    assert (answer.map.nodes[answer.node_id].name, endpoint) == ("gpu", front)
    assert len(said) == 2
    assert all(f"{front}: no answer in" in words and "retrying for" in words for words in said)


async def test_one_that_stays_silent_fails_after_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_contact, "TIMEOUTS_S", (SHORT_S, SHORT_S, SHORT_S))
    key, said = PrivateKey.generate(), list[str]()
    async with running_mesh(tmp_path) as mesh, busy_front(port_of(mesh), 100) as front:
        token = replace(mesh.token, coordinators=(front,))
        with pytest.raises(TimedOutError, match="no answer in 2 s"):
            await enrol(token, asking(token, key), key, on_wait=said.append)
    assert len(said) == 2


async def test_one_that_refuses_fails_at_once(tmp_path: Path) -> None:
    key, said = PrivateKey.generate(), list[str]()
    async with running_mesh(tmp_path) as mesh:
        token = replace(mesh.token, coordinators=(Endpoint("127.0.0.1", 1),))
        with pytest.raises(UnreachableError, match="connection refused") as raised:
            await enrol(token, asking(token, key), key, on_wait=said.append)
    assert not isinstance(raised.value, TimedOutError)
    assert said == []
