"""The small HTTP server and its limits, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from meshray.agent.metrics import http_server
from meshray.agent.metrics.http_server import HttpServer, Page


async def numbers() -> Page:
    return Page(b"one 1\n")


async def large() -> Page:
    return Page(b"x" * 5_000_000)


async def broken() -> Page:
    raise ValueError("secret detail")


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = HttpServer({"/metrics": numbers, "/large": large, "/broken": broken})
    task = asyncio.get_running_loop().create_task(server.serve(listener))
    try:
        yield port
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(port: int, request: bytes) -> tuple[str, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), body


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /metrics HTTP/1.1", 200),
        ("GET /metrics?a=b HTTP/1.0", 200),
        ("GET /secrets HTTP/1.1", 404),
        ("GET /../metrics HTTP/1.1", 404),
        ("POST /metrics HTTP/1.1", 405),
        ("DELETE /metrics HTTP/1.1", 405),
        ("CONNECT 10.0.0.1:22 HTTP/1.1", 405),
        ("nonsense", 400),
        ("GET /metrics SPDY/3", 400),
        ("GET /broken HTTP/1.1", 500),
    ],
)
async def test_only_its_pages_and_only_get(request_line: str, status: int) -> None:
    async with serving() as port:
        head, body = await ask(port, f"{request_line}\r\nHost: x\r\n\r\n".encode())
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert f"Content-Length: {len(body)}" in head
    assert b"secret" not in body


async def test_head_has_no_body() -> None:
    async with serving() as port:
        head, body = await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert "Content-Length: 6" in head and body == b""


async def test_long_and_slow_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_REQUEST_S", 0.2)
    async with serving() as port:
        head, _ = await ask(port, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n")
        assert head.startswith("HTTP/1.1 400")
        assert await ask(port, b"GET /metrics HTTP/1.1\r\n") == ("", b"")


async def test_stalled_clients_do_not_delay_others_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_ANSWER_S", 0.5)
    async with serving() as port:
        stuck = []
        for _ in range(http_server._MOST_CONNECTIONS + 4):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
            stuck.append(client)
        await asyncio.sleep(1.5)
        head, body = await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        for client in stuck:
            client.close()
    assert head.startswith("HTTP/1.1 200") and body == b"one 1\n"
