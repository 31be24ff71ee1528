"""The proxy before Ray's dashboard, with a real server behind it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from meshray.runtime.container import dashboard_proxy
from meshray.runtime.container.dashboard_proxy import DashboardProxy, authorized
from tests.lab.waiting import wait_until

TOKEN = "of-ray"


def free_port() -> int:
    """Return a port of the loopback on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def echo(request: web.Request) -> web.StreamResponse:
    """Answer what arrived."""
    seen = {name: request.headers.getall(name) for name in set(request.headers)}
    return web.json_response({"path": request.path_qs, "headers": seen, "body": len(await request.read())})


async def talk(request: web.Request) -> web.StreamResponse:
    """Answer each message of a WebSocket, until the client closes it."""
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    answers = web.WebSocketResponse()
    await answers.prepare(request)
    async for message in answers:
        await answers.send_str(message.data.upper())
    return answers


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """Start a dashboard and the proxy; return the proxy's URL."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    application = web.Application(client_max_size=2**24)
    application.router.add_get("/tail", talk)
    application.router.add_route("*", "/{rest:.*}", echo)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy = DashboardProxy(runner.addresses[0][:2], tmp_path / "token")
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await runner.cleanup()


async def test_a_request_gets_rays_token_and_keeps_the_rest(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        sent = {"Authorization": "Bearer wrong", "Cookie": "ray-authentication-token=wrong", "X-Kept": "yes"}
        async with session.get(f"{url}/api/jobs/?a=1", headers=sent) as answer:
            found = await answer.json()
        assert found["path"] == "/api/jobs/?a=1"
        assert found["headers"]["Authorization"] == [f"Bearer {TOKEN}"]
        assert found["headers"]["X-Kept"] == ["yes"]
        assert "Cookie" not in found["headers"]
        # A client that keeps connections makes a new one for each request.
        for size in (0, 5_000_000):
            async with session.put(f"{url}/api/packages/x", data=io.BytesIO(b"x" * size)) as answer:
                assert (await answer.json())["body"] == size


async def test_a_websocket_passes_in_both_directions(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/tail") as tail:
        for word in ("one", "two"):
            await tail.send_str(word)
            assert await tail.receive_str() == word.upper()
        await tail.close()
        assert (await tail.receive()).type is WSMsgType.CLOSED


@pytest.mark.parametrize("missing", ["dashboard", "token"])
async def test_without_a_dashboard_or_a_token_the_answer_says_so(tmp_path: Path, missing: str) -> None:
    if missing == "dashboard":
        (tmp_path / "token").write_text(TOKEN)
    proxy = DashboardProxy(("127.0.0.1", free_port()), tmp_path / "token")
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    async with aiohttp.ClientSession() as session, server:
        port = server.sockets[0].getsockname()[1]
        async with session.get(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 502
            assert "Ray's dashboard does not answer" in await answer.text()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nauthorization : a\r\nX-RAY-AUTHORIZATION: b\r\n\r\n",
        b"\xff\x00 nonsense\r\n:\r\n\r\n",
    ],
)
def test_every_head_has_the_token_once(head: bytes) -> None:
    found = authorized(head, TOKEN)
    assert found.lower().count(b"authorization") == 1
    assert found.endswith(b"\r\nAuthorization: Bearer of-ray\r\n\r\n")
    assert found.startswith(head.split(b"\r\n")[0])


def test_the_program_serves_until_sigterm(tmp_path: Path) -> None:
    port = free_port()
    words = ["http://127.0.0.1:9", str(tmp_path / "token"), str(port), "127.0.0.1"]
    command = [sys.executable, "-I", "-m", "meshray.runtime.container.dashboard_proxy", *words]
    with subprocess.Popen(command, env={**os.environ}) as process:

        def answers() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                return False
            return True

        try:
            wait_until(answers, 20, "the proxy's port")
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


async def test_a_client_whose_machine_is_gone_frees_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[object] = []
    monkeypatch.setattr(dashboard_proxy, "keep_alive", watched.append)
    proxy = DashboardProxy(("127.0.0.1", free_port()), tmp_path / "token")
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/") as answer,
    ):
        assert answer.status == 502
    assert len(watched) == 1
    server.close()
