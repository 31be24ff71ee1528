"""The proxies and tunnels of the page: a real coordinator over TLS, and real programs behind it on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from meshray.coordinator.records import SecretEpoch
from meshray.coordinator.secret_epochs import newest, ray_token
from meshray.coordinator.service import Service
from meshray.linux.overlay_dialer import OverlayDialer
from meshray.protocol.tunnel import EOF, ERROR_HEADER
from meshray.web import program_routes, proxy
from meshray.web.access import COOKIE
from meshray.web.proxy_limits import ProxyLimits

from .coordinator_harness import Agent, Running, running_mesh
from .page_client import Browser, browser_of

PORT = 8350
#: The kernel tests a quiet connection after a minute, every 15 s, and 4 times.
KEEPALIVE = (1, 60, 15, 4)
#: A request beside a stalled one must not take longer, seconds; on a busy machine it takes a tenth of it.
QUICK_S = 1.0


@dataclass
class Overlay:
    """Which program listens where on the overlay: (address, port) → its port on loopback."""

    ports: dict[tuple[str, int], int] = field(default_factory=dict)
    listens: dict[str, frozenset[int]] = field(default_factory=dict)
    dialled: list[str] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)

    async def dial(self, ip: IPv4Address, port: int) -> socket.socket:
        self.dialled.append(f"{ip}:{port}")
        where = self.ports.get((str(ip), port))
        if where is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        self.connections.append(await OverlayDialer().connect(IPv4Address("127.0.0.1"), where))
        return self.connections[-1]


@pytest.fixture
def overlay(monkeypatch: pytest.MonkeyPatch) -> Overlay:
    found = Overlay()
    names: dict[str, str] = {}

    def listens_of(service: Service) -> Callable[[str], frozenset[int] | None]:
        def listens(node_id: str) -> frozenset[int] | None:
            names.update({member.node.id: str(member.node.name) for member in service.members()})
            return found.listens.get(names.get(node_id, ""))

        return listens

    monkeypatch.setattr(program_routes, "dial_from", lambda service, dialer: found.dial)
    monkeypatch.setattr(program_routes, "listens_of", listens_of)
    return found


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def program(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """Run an HTTP program on loopback; yield its port."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@dataclass
class Lab:
    mesh: Running
    browser: Browser
    overlay: Overlay
    agents: dict[str, Agent]

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any, bytes]:
        headers = {**self.browser.headers(method), **options.pop("headers", {})}
        async with self.browser.client.session.request(
            method,
            self.browser.origin + path,
            headers=headers,
            ssl=self.browser.client.pin,
            allow_redirects=False,
            **options,
        ) as answer:
            return answer.status, answer.headers, await answer.read()

    async def socket(self, path: str, **options: Any) -> aiohttp.ClientWebSocketResponse[bool]:
        headers = {**self.browser.headers("POST"), **options.pop("headers", {})}
        return await self.browser.client.session.ws_connect(
            self.browser.origin + path, headers=headers, ssl=self.browser.client.pin, **options
        )


@asynccontextmanager
async def lab(folder: Path, overlay: Overlay, handler: Handler, level: str = "use") -> AsyncIterator[Lab]:
    """Yield a mesh of head and gpu; the handler answers at gpu's port PORT and at the head's dashboard."""
    async with running_mesh(folder) as mesh, program(handler) as port:
        enrolled = await mesh.client.enrol(mesh.token, "gpu")
        async with contextlib.AsyncExitStack() as stack:
            agents = {
                "head": await mesh.client.agent(mesh.head.credential),
                "gpu": await mesh.client.agent(enrolled.credential),
            }
            for agent in agents.values():
                stack.push_async_callback(agent.socket.close)
            for agent in agents.values():
                await agent.until_online("gpu", True)
            overlay.ports = {("10.99.0.2", PORT): port, ("10.99.0.1", 8265): port}
            overlay.listens = {"gpu": frozenset({PORT, 20101, 8400}), "head": frozenset({8400})}
            yield Lab(mesh, await browser_of(mesh, level=level), overlay, agents)


async def mirror(request: web.Request) -> web.StreamResponse:
    """Answer with what arrived, and with headers that concern the whole host."""
    body = await request.read()
    answer = web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "body": len(body),
            "headers": {name.lower(): value for name, value in request.headers.items()},
        }
    )
    for name, value in (
        ("Set-Cookie", "__Host-meshray=stolen; Path=/; Secure"),
        ("Set-Cookie", "id=7; Path=/; Domain=example.org; HttpOnly"),
        ("Service-Worker-Allowed", "/"),
        ("Clear-Site-Data", '"cookies"'),
        ("Content-Security-Policy", "default-src *"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Access-Control-Allow-Origin", "https://evil.example"),
        ("Access-Control-Allow-Credentials", "true"),
        ("Strict-Transport-Security", "max-age=1000"),
        ("Connection", "X-Private"),
        ("X-Private", "1"),
        ("X-Kept", "1"),
    ):
        answer.headers.add(name, value)
    return answer


SERVE = f"/serve/gpu/{PORT}"


async def json_of(lab: Lab, method: str, path: str, **options: Any) -> Any:
    status, headers, body = await lab.call(method, path, **options)
    assert status == 200, body
    return json.loads(body), headers


# ---- what arrives, and what is kept apart


async def test_a_request_arrives_as_the_browser_wrote_it_without_the_session(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        cookies = f"{COOKIE}={page.browser.cookie}; id=7; __HOST-meshray=x"
        seen, _ = await json_of(
            page,
            "POST",
            SERVE + "/a%2Fb/c?q=%20x&y",
            data=b"x" * 100_000,
            headers={"Cookie": cookies, "X-Forwarded-For": "1.2.3.4", "Connection": "X-Hop", "X-Hop": "1"},
        )
        headers = seen["headers"]
        assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/a%2Fb/c?q=%20x&y", 100_000)
        assert headers["cookie"] == "id=7"
        assert headers["host"] == f"10.99.0.2:{PORT}"
        assert headers["origin"] == f"http://10.99.0.2:{PORT}"
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert headers["x-forwarded-prefix"] == SERVE
        assert headers["x-forwarded-proto"] == "https"
        assert "x-hop" not in headers
        assert page.browser.cookie not in str(seen)


async def test_an_answer_cannot_reach_beyond_its_prefix(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        _, headers = await json_of(page, "GET", SERVE + "/")
        assert headers.getall("Set-Cookie") == [f"id=7; HttpOnly; Path={SERVE}; Secure"]
        assert headers["Cross-Origin-Opener-Policy"] == "unsafe-none"
        assert headers["X-Kept"] == "1"
        for name in ("Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "X-Private"):
            assert name not in headers
        assert not [name for name in headers if name.lower().startswith("access-control-")]
        policy = headers["Content-Security-Policy"]
        own = f"{page.browser.origin}{SERVE}/"
        assert f"connect-src {own} " in policy
        assert f"form-action {own} " in policy
        assert "default-src *" not in policy


async def test_in_an_admins_session_a_program_loads_nothing_from_elsewhere(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror, level="admin") as page:
        _, headers = await json_of(page, "GET", SERVE + "/")
        rules = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
        own = f"{page.browser.origin}{SERVE}/"
        for name in ("default-src", "connect-src", "script-src", "form-action", "frame-src", "worker-src", "img-src"):
            hosts = [word for word in rules[name].split() if "//" in word]
            assert hosts == [own, own.replace("https", "wss")], name
        assert rules["object-src"] == "'none'"


@pytest.mark.parametrize(
    ("location", "seen"),
    [
        ("/login", SERVE + "/login"),
        ("next", SERVE + "/a/next"),
        ("../../../tokens", SERVE + "/"),
        ("%2e%2e/%2E%2e/%2e%2e/../tokens", SERVE + "/"),
        ("https://{page}/tokens", SERVE + "/tokens"),
        ("//{page}/tokens", SERVE + "/tokens"),
        ("\\\\{page}\\tokens", SERVE + "/tokens"),
        (f"http://10.99.0.2:{PORT}/x?y=1", SERVE + "/x?y=1"),
        ("https://example.org/x", "https://example.org/x"),
        ("javascript:alert(1)", SERVE + "/"),
    ],
)
async def test_a_redirect_stays_below_the_prefix(tmp_path: Path, overlay: Overlay, location: str, seen: str) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": location.replace("{page}", page.browser.origin[8:])})

    async with lab(tmp_path, overlay, redirect) as page:
        status, headers, _ = await page.call("GET", SERVE + "/a/b")
        assert (status, headers["Location"]) == (302, seen)


async def test_the_prefix_without_a_slash_leads_to_the_one_with_it(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        status, headers, _ = await page.call("GET", SERVE + "?x=1")
        assert (status, headers["Location"]) == (308, SERVE + "/?x=1")


@pytest.mark.parametrize("path", ["/v1/hello", "/v1/nothing", "/" + "a" * 9000, "/" + "a" * 40_000, "/a b"])
async def test_no_answer_gives_a_program_a_window_without_a_policy(tmp_path: Path, overlay: Overlay, path: str) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        reader, writer = await page.browser.client.raw()
        cookie = page.browser.headers("GET")["Cookie"]
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert b"content-security-policy: default-src 'none'" in head.lower(), head
        writer.close()


# ---- levels and origins


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("path", [SERVE + "/", "/ray/api/jobs/"])
async def test_a_reading_session_only_reads(tmp_path: Path, overlay: Overlay, method: str, path: str) -> None:
    async with lab(tmp_path, overlay, mirror, level="read") as page:
        assert (await page.call("GET", SERVE + "/"))[0] == 200
        before = len(overlay.dialled)
        assert (await page.call(method, path))[0] == 403
        assert len(overlay.dialled) == before


@pytest.mark.parametrize("path", [SERVE + "/", "/ray/api/x", f"/tcp/gpu/{PORT}"])
async def test_a_reading_session_opens_no_websocket(tmp_path: Path, overlay: Overlay, path: str) -> None:
    async with lab(tmp_path, overlay, mirror, level="read") as page:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await page.socket(path)
        assert refused.value.status == 403
        assert not overlay.dialled


@pytest.mark.parametrize("path", [SERVE + "/", "/ray/api/x", f"/tcp/gpu/{PORT}"])
async def test_a_websocket_of_another_origin_is_refused(tmp_path: Path, overlay: Overlay, path: str) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await page.socket(path, headers={"Origin": "https://127.0.0.1:1"})
        assert refused.value.status == 403
        assert not overlay.dialled


# ---- Ray's dashboard


async def test_ray_gets_its_token_and_the_browser_never_receives_it(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        token = page.mesh.server.service.secrets.ray_token()
        assert token == page.mesh.head.ray_token
        headers = {"Authorization": "Bearer mine", "X-Ray-Authorization": "Bearer mine"}
        cookie = f"{COOKIE}={page.browser.cookie}; ray-authentication-token=mine; theme=dark"
        seen, answer = await json_of(page, "GET", "/ray/api/v0/nodes", headers={**headers, "Cookie": cookie})
        assert seen["headers"]["authorization"] == f"Bearer {token}"
        assert "x-ray-authorization" not in seen["headers"]
        assert seen["headers"]["cookie"] == "theme=dark"
        assert seen["path"] == "/api/v0/nodes"
        assert token not in str(dict(answer))


async def test_ray_never_prompts_the_browser_for_a_token(tmp_path: Path, overlay: Overlay) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401, text="Unauthorized: Missing authentication token")

    async with lab(tmp_path, overlay, refuse) as page:
        status, headers, body = await page.call("GET", "/ray/api/v0/nodes")
        assert (status, headers[ERROR_HEADER]) == (502, "ray_token_refused")
        assert b"does not accept the mesh" in body
        assert (await page.call("POST", "/ray/api/authenticate"))[0] == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("", 200),
        ("static/js/main.js", 200),
        ("nodes/1?view=summary", 200),
        ("api/v0/tasks?detail=1", 200),
        ("worker/traceback?pid=1", 405),
        ("%77orker/traceback?pid=1", 405),
        ("task/cpu_profile", 405),
        ("memory_profile", 405),
        ("logical/kill_actor?actor_id=1", 405),
        ("api/v0/%64elay/5", 405),
        ("static/../worker/traceback", 405),
        ("static/%2e%2e/worker/traceback", 405),
        ("api/authenticate", 405),
    ],
)
async def test_a_read_session_reaches_only_the_reading_paths_of_ray(
    tmp_path: Path, overlay: Overlay, path: str, status: int
) -> None:
    async with lab(tmp_path, overlay, mirror, level="read") as page:
        url = URL(f"{page.browser.origin}/ray/{path}", encoded=True)
        async with page.browser.client.session.get(
            url, headers=page.browser.headers("GET"), ssl=page.browser.client.pin
        ) as answer:
            assert answer.status == status
        assert len(overlay.dialled) == (status == 200)


async def test_the_token_is_that_of_the_running_ray_after_a_rotation(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        keeper = page.mesh.server.service.secrets
        first = keeper.ray_token()
        registry = page.mesh.server.service._ledger.registry
        second = replace(SecretEpoch.make(1, 0.0), number=2)
        rotated = replace(registry, epochs=(newest(registry), second))
        assert ray_token(rotated) == second.ray_token  # the head's Ray is down
        head = registry.members[page.mesh.head.node_id]
        for instance, expected in (("0" * 16, first), ("0" * 16 + "-2", second.ray_token)):
            running = replace(head, node=replace(head.node, ray_instance=instance))
            members = {**rotated.members, head.node.id: running}
            assert ray_token(replace(rotated, members=members)) == expected


# ---- where it leads, and why not


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/serve/nobody/{PORT}/", 404, "node_unknown"),
        ("/serve/%3Cscript%3E/80/", 404, "node_unknown"),
        ("/serve/gpu/99999/", 404, "bad_port"),
        ("/serve/gpu/080/", 404, "bad_port"),
        ("/serve/gpu/22/", 404, "port_not_rays"),
        ("/serve/any/22/", 404, "port_not_rays"),
        ("/serve/gpu/20101/", 403, "port_of_ray_itself"),
        ("/serve/gpu/8400/", 502, "refused"),
        ("/tcp/gpu/22", 426, "not_a_websocket"),
    ],
)
async def test_a_wrong_address_is_explained(
    tmp_path: Path, overlay: Overlay, path: str, status: int, code: str
) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        found, headers, body = await page.call("GET", path)
        assert (found, headers[ERROR_HEADER]) == (status, code), body
        assert headers["Content-Type"].startswith("text/html")
        assert b"<script>" not in body
        assert "default-src 'none'" in headers["Content-Security-Policy"]


async def test_a_node_that_is_offline_or_reports_no_ports_is_explained(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        del overlay.listens["gpu"]
        assert (await page.call("GET", SERVE + "/"))[1][ERROR_HEADER] == "ports_unknown"
        await page.agents["gpu"].socket.close()
        await page.agents["head"].until_online("gpu", False)
        status, headers, body = await page.call("GET", SERVE + "/")
        assert (status, headers[ERROR_HEADER]) == (503, "node_offline")
        assert b"meshray up" in body


async def test_any_leads_to_a_node_that_answers(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        overlay.ports["10.99.0.2", 8400] = overlay.ports["10.99.0.2", PORT]
        seen, _ = await json_of(page, "POST", "/serve/any/8400/x", data=b"abc")
        # The head reports the port too, but refuses the connection.
        assert overlay.dialled[-2:] == ["10.99.0.1:8400", "10.99.0.2:8400"]
        assert (seen["path"], seen["body"]) == ("/x", 3)


# ---- streams, and what stalls


async def test_chunks_and_events_arrive_as_they_are_sent(tmp_path: Path, overlay: Overlay) -> None:
    gate = asyncio.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await gate.wait()
        await response.write(b"data: 2\n\n")
        return response

    async with lab(tmp_path, overlay, events) as page:
        answer = await page.browser.stream(SERVE + "/")
        assert await asyncio.wait_for(answer.content.read(100), 5) == b"data: 1\n\n"
        gate.set()
        assert await asyncio.wait_for(answer.content.read(100), 5) == b"data: 2\n\n"
        assert await answer.content.read() == b""


async def test_a_broken_answer_does_not_look_complete(tmp_path: Path, overlay: Overlay) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with lab(tmp_path, overlay, broken) as page:
        with pytest.raises(aiohttp.ClientError):
            await page.call("GET", SERVE + "/")


async def test_a_program_that_speaks_no_http_is_explained(tmp_path: Path, overlay: Overlay) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-x\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with lab(tmp_path, overlay, mirror) as page:
        overlay.ports["10.99.0.2", PORT] = server.sockets[0].getsockname()[1]
        status, headers, _ = await page.call("GET", SERVE + "/")
        assert (status, headers[ERROR_HEADER]) == (502, "bad_answer")
    server.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the limits small."""
    real = proxy.Proxy

    def smaller(*arguments: Any, **options: Any) -> proxy.Proxy:
        return real(*arguments, **options, first_byte_s=1.0, idle_s=1.5, upload_bytes=1 << 20)

    monkeypatch.setattr(program_routes, "Proxy", smaller)
    monkeypatch.setattr(program_routes, "ProxyLimits", lambda: ProxyLimits(per_viewer=4, total=6))


async def hang(request: web.Request) -> web.StreamResponse:
    if request.path == "/ok":
        return web.Response(text="ok")
    await asyncio.sleep(60)
    raise AssertionError


@pytest.mark.usefixtures("small")
async def test_a_program_that_hangs_is_given_up_and_stalls_nothing_else(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, hang) as page:
        stuck = [asyncio.get_running_loop().create_task(page.call("GET", f"{SERVE}/{n}")) for n in range(4)]
        await asyncio.sleep(0.3)
        # Beside them: another request of the session is refused at once, and other parts answer at once.
        for path, expected in ((SERVE + "/ok", 429), ("/nothing", 404), ("/v1/hello", 200)):
            began = time.monotonic()
            assert (await page.call("GET", path))[0] == expected
            assert time.monotonic() - began < QUICK_S
        other = await browser_of(page.mesh, name="eva", level="use")
        began = time.monotonic()
        assert (await other.call("GET", SERVE + "/ok")).text == "ok"
        assert time.monotonic() - began < QUICK_S
        for status, headers, _ in await asyncio.gather(*stuck):
            assert (status, headers[ERROR_HEADER]) == (504, "timed_out")
        assert (await page.call("GET", SERVE + "/ok"))[2] == b"ok"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_huge_upload_is_refused(tmp_path: Path, overlay: Overlay, chunked: bool) -> None:
    arrived = 0

    async def take(request: web.Request) -> web.StreamResponse:
        nonlocal arrived
        async for chunk in request.content.iter_any():
            arrived += len(chunk)
        return web.Response(text=str(arrived))

    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    async with lab(tmp_path, overlay, take) as page:
        data: Any = body() if chunked else io.BytesIO(b"x" * (4 << 20))
        try:
            status, headers, _ = await page.call("POST", SERVE + "/", data=data)
        except aiohttp.ClientError:
            # The rest of the body met a closed connection; the limit held all the same.
            assert chunked
        else:
            assert (status, headers[ERROR_HEADER]) == (413, "request_too_large")
        assert arrived <= 1 << 20
        before = arrived
        status, headers, text = await page.call("POST", SERVE + "/", data=b"x" * 1000)
        assert (status, text) == (200, str(before + 1000).encode()), headers


@pytest.mark.usefixtures("small")
async def test_a_browser_that_never_reads_is_dropped_and_stalls_nothing_else(tmp_path: Path, overlay: Overlay) -> None:
    written = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal written
        if request.path == "/ok":
            return web.Response(text="ok")
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            written += 65536

    async with lab(tmp_path, overlay, endless) as page:
        reader, writer = await page.browser.client.raw(receive_buffer=4096)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        cookie = page.browser.headers("GET")["Cookie"]
        writer.write(f"GET {SERVE}/x HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n\r\n".encode())
        await asyncio.sleep(0.7)
        stalled = written
        await asyncio.sleep(0.2)
        assert 0 < written < 32 << 20
        assert written - stalled < 1 << 20, "the program is not slowed down"
        began = time.monotonic()
        assert (await page.call("GET", SERVE + "/ok"))[2] == b"ok"
        assert time.monotonic() - began < QUICK_S
        await asyncio.sleep(2.5)
        after = written
        await asyncio.sleep(0.5)
        assert written == after, "the stream still runs"
        writer.close()


# ---- WebSockets and tunnels


async def talk(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=("b", "a"))
    await socket.prepare(request)
    async for message in socket:
        if message.data == "bye":
            await socket.close(code=4007)
        elif message.type is aiohttp.WSMsgType.TEXT:
            await socket.send_str(message.data.upper())
        else:
            await socket.send_bytes(message.data[::-1])
    return socket


async def test_websockets_pass_in_both_directions(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, talk) as page:
        socket = await page.socket(SERVE + "/ws", protocols=("a",))
        assert socket.protocol == "a"
        await socket.send_str("hello")
        assert (await socket.receive(5)).data == "HELLO"
        await socket.send_bytes(b"abc" * 100_000)
        assert (await socket.receive(5)).data == b"cba" * 100_000
        await socket.send_str("bye")
        assert (await socket.receive(5)).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4007


async def test_a_websocket_to_what_is_none_is_explained(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await page.socket(SERVE + "/ws")
        assert refused.value.status == 502
        assert refused.value.headers is not None
        assert refused.value.headers[ERROR_HEADER] == "bad_answer"


async def test_a_tunnel_carries_tcp_with_its_half_closed_end(tmp_path: Path, overlay: Overlay) -> None:
    async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(reverse, "127.0.0.1", 0)
    async with lab(tmp_path, overlay, mirror) as page:
        overlay.ports["10.99.0.2", 22] = server.sockets[0].getsockname()[1]
        socket = await page.socket("/tcp/gpu/22")
        for _ in range(20):
            await socket.send_bytes(b"ab" * 100_000)
        await socket.send_str(EOF)
        received = b""
        while (message := await socket.receive(5)).type is aiohttp.WSMsgType.BINARY:
            received += message.data
        assert received == b"ba" * 2_000_000
        assert (message.type, message.data) == (aiohttp.WSMsgType.TEXT, EOF)
        assert (await socket.receive(5)).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1000
    server.close()


async def test_a_tunnel_leads_to_overlay_addresses_only(tmp_path: Path, overlay: Overlay) -> None:
    async with lab(tmp_path, overlay, mirror) as page:
        for who in ("127.0.0.1", "192.0.2.1", "10.99.0.9", "localhost", "any", "example.org"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await page.socket(f"/tcp/{who}/22")
            assert refused.value.status == 404, who
        assert not overlay.dialled


async def test_a_stalled_reader_stops_the_other_side(tmp_path: Path, overlay: Overlay) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    async with lab(tmp_path, overlay, mirror) as page:
        overlay.ports["10.99.0.2", 22] = server.sockets[0].getsockname()[1]
        socket = await page.socket("/tcp/gpu/22", max_msg_size=0)
        await asyncio.sleep(1)
        stalled = sent
        await asyncio.sleep(0.5)
        assert sent - stalled < 1 << 20
        assert stalled < 64 << 20
        await socket.close()
    server.close()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("path", ["/tcp/gpu/22", SERVE + "/ws"])
async def test_a_quiet_tunnel_or_websocket_stays_and_the_kernel_tests_both_its_ends(
    tmp_path: Path, overlay: Overlay, path: str
) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read(100)).upper())
        writer.close()

    server = await asyncio.start_server(upper, "127.0.0.1", 0)
    async with lab(tmp_path, overlay, talk) as page:
        overlay.ports["10.99.0.2", 22] = server.sockets[0].getsockname()[1]
        opened = await page.socket(path)
        # Longer than an answer of HTTP may be quiet.
        await asyncio.sleep(2)
        (program_end,) = overlay.connections
        assert idle_tests(program_end) == idle_tests(browser_end(page, opened)) == KEEPALIVE
        await (opened.send_bytes(b"hello") if path.startswith("/tcp") else opened.send_str("hello"))
        assert (await opened.receive(5)).data in (b"HELLO", "HELLO")
        await opened.close()
    server.close()


def idle_tests(connection: Any) -> tuple[int, int, int, int]:
    """Return whether the kernel tests this connection, after how long, at which intervals, and how often."""
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    times = [connection.getsockopt(socket.IPPROTO_TCP, option) for option in options]
    return (connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *times)


def browser_end(page: Lab, opened: aiohttp.ClientWebSocketResponse[bool]) -> Any:
    """Return the coordinator's end of a browser's connection."""
    runner = page.mesh.server._runner
    assert runner is not None
    assert runner.server is not None
    own = opened.get_extra_info("sockname")
    ends = (handler.transport for handler in runner.server.connections)
    return next(end.get_extra_info("socket") for end in ends if end and end.get_extra_info("peername") == own)


@pytest.mark.parametrize("path", ["/tcp/gpu/22", SERVE + "/ws"])
async def test_a_revoked_pass_ends_tunnels_and_websockets_at_once(tmp_path: Path, overlay: Overlay, path: str) -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    async def wait_ws(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        ended.set()
        return socket

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    async with lab(tmp_path, overlay, wait_ws) as page:
        overlay.ports["10.99.0.2", 22] = server.sockets[0].getsockname()[1]
        await page.socket(path)
        passes = (await page.mesh.admin("GET", "/v1/web/passes")).body
        first: Any = passes["passes"]
        reply = await page.mesh.admin("DELETE", f"/v1/web/passes/{first[0]['id']}")
        assert reply.status == 200, reply.body
        await asyncio.wait_for(ended.wait(), 1.0)
    server.close()
