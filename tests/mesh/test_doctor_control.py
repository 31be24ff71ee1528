"""The results of the doctor's probe of the coordinator at real ports on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.doctor.context import Context
from meshray.doctor.control.facts import (
    ANSWERED,
    CLOSED,
    NOT_TLS,
    OTHER_CERTIFICATE,
    PLAIN_HTTP,
    PROXY,
    REFUSED,
    SILENT,
    UNRESOLVED,
    ControlFacts,
)
from meshray.doctor.control.probe import measure
from meshray.home import Home
from meshray.linux.ports import free_udp_port
from meshray.model.address import Endpoint

from .coordinator_harness import Running, enrol_request, running_mesh

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def no_proxy_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def context(tmp_path: Path, *endpoints: Endpoint, fingerprint: bytes = bytes(32), credential: str = "") -> Context:
    home = Home(tmp_path / "state", tmp_path / "run")
    return Context(home, coordinators=endpoints, fingerprint=fingerprint, credential=credential)


async def of_node(mesh: Running, tmp_path: Path) -> Context:
    reply = await mesh.client.call("POST", "/v1/enroll", enrol_request(mesh.token))
    here = Endpoint("127.0.0.1", mesh.client.port)
    return context(tmp_path, here, fingerprint=mesh.token.fingerprint, credential=str(reply.body["credential"]))


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[Endpoint]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


def saying(text: bytes) -> Handler:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(text)
        writer.close()

    return say


def state(facts: ControlFacts) -> str:
    return facts.endpoints[0].state


async def test_the_right_coordinator_reports_everything(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        requests: list[int] = []

        async def map_of(revision: int, patience_s: float) -> int:
            requests.append(revision)
            return revision

        facts = await measure(replace(await of_node(mesh, tmp_path), map_of=map_of))
        assert state(facts) == ANSWERED
        assert (facts.accepted, facts.upgrade) == (True, "")
        assert facts.revision == facts.coordinator_revision == requests[0]
        assert facts.coordinator_version
        assert facts.tokens is None


async def test_an_unknown_credential_and_a_pin_of_another_mesh_are_rejected(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        node = await of_node(mesh, tmp_path)
        removed = await measure(replace(node, credential="nobody"))
        assert (removed.accepted, removed.coordinator_revision) == (False, None)
        other = await measure(replace(node, fingerprint=bytes(32)))
        assert state(other) == OTHER_CERTIFICATE
        assert other.endpoints[0].subject == "CN=meshray coordinator"
        assert other.endpoints[0].fingerprint == mesh.token.fingerprint.hex()


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (silent, SILENT),
        (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), NOT_TLS),
        (saying(b""), CLOSED),
        (saying(b"HTTP/1.1 302 Found\r\nLocation: http://in.example/\r\nContent-Length: 0\r\n\r\n"), PLAIN_HTTP),
    ],
)
async def test_another_server_answers(tmp_path: Path, handler: Handler, expected: str) -> None:
    async with answering(handler) as endpoint:
        facts = await measure(context(tmp_path, endpoint))
    assert state(facts) == expected
    assert (facts.accepted, facts.upgrade) == (None, None)


async def test_no_server_answers(tmp_path: Path) -> None:
    nobody = Endpoint("127.0.0.1", free_udp_port(51888)), Endpoint("no-such-host.invalid", 51888)
    facts = await measure(context(tmp_path, *nobody))
    assert [seen.state for seen in facts.endpoints] == [REFUSED, UNRESOLVED]


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "407"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "403"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not an HTTP proxy"),
    ],
)
async def test_a_proxy_that_refuses_to_connect_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, detail: str
) -> None:
    async with answering(saying(answer)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://ada:secret@{proxy}")
        facts = await measure(context(tmp_path, Endpoint("203.0.113.10", 51888)))
    assert state(facts) == PROXY
    assert detail in facts.endpoints[0].detail
    assert "secret" not in str(facts)
