"""Access to the coordinator's page: a real coordinator over TLS, and clients that behave as browsers do."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from meshray.coordinator import server as server_module
from meshray.coordinator.connection_limits import ConnectionLimits
from meshray.coordinator.handlers import API_PATH
from meshray.coordinator.server import Server
from meshray.coordinator.service import Service
from meshray.web.access import COOKIE, Level
from meshray.web.frame import Site
from meshray.web.site import add_site

from .coordinator_harness import PATIENCE_S, Running, client_of, make_mesh, running_mesh, running_server
from .page_client import Browser, Page, browser_of, invite

#: Paths below which a client without a session gets more than 401.
PUBLIC = ("/enter", "/static/")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: What only the page with the session's own data may contain.
SECRETS = re.compile(r"\blab\b|aiohttp|python|\d+\.\d+\.\d+|gpu|10\.99\.", re.IGNORECASE)


SITE = web.AppKey("site", Site)


async def stream(request: web.Request) -> web.StreamResponse:
    """Send a line every 10 ms for ever, as server-sent events do."""
    request.app[SITE].access.hold(request)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(b"data: x\n\n")
        await asyncio.sleep(0.01)


async def echo(request: web.Request) -> web.StreamResponse:
    request.app[SITE].access.hold(request)
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


async def slow(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


async def failing(request: web.Request) -> web.StreamResponse:
    raise ZeroDivisionError("a secret")


@pytest.fixture(autouse=True)
def more_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add routes that take long, or fail."""

    def add(app: web.Application, service: Service, connection_limits: ConnectionLimits) -> Site:
        site = add_site(app, service, connection_limits)
        app[SITE] = site
        site.add("GET", "/test/stream", stream)
        site.add("*", "/test/socket", echo, write=Level.USE, is_program=True)
        site.add("GET", "/test/cookie", failing, needs_cookie=True)
        site.add("GET", "/test/slow", slow)
        site.add("*", "/test/failing", failing, write=Level.USE, is_program=True)
        return site

    monkeypatch.setattr(server_module, "add_site", add)


def routes(mesh: Running) -> Iterator[tuple[str, str]]:
    """Yield the method and a path of every route outside of the API, however it was added."""
    runner = mesh.server._runner
    assert runner is not None
    for route in runner.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        if not path.startswith(API_PATH):
            yield route.method, re.sub(r"\{[^}]*\}", "1", path)


@asynccontextmanager
async def with_browser(folder: Path, level: str) -> AsyncIterator[tuple[Running, Browser]]:
    async with running_mesh(folder) as mesh:
        yield mesh, await browser_of(mesh, level=level)


def headers_are_strict(page: Page) -> bool:
    policy = page.headers["Content-Security-Policy"]
    expected = {
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Server": "meshray",
    }
    return (
        all(page.headers[name] == value for name, value in expected.items())
        and "frame-ancestors 'none'" in policy
        and "default-src 'none'" in policy
        and "unsafe" not in policy
    )


# ---- without a session


async def test_without_a_session_every_path_gives_401_and_nothing_else(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        browser = Browser(mesh.client)
        found = [(method, path) for method, path in routes(mesh) if not path.startswith(PUBLIC)]
        assert {"/signout", "/tokens", "/nodes/1/remove", "/test/stream"} <= {path for _, path in found}
        paths = {path for _, path in found} | {"/", "/no/such/page", "/v1", "//v1/hello", "/v1%2Fhello", "/etc/passwd"}
        answers = set()
        for path in sorted(paths):
            for method in METHODS:
                page = await browser.call(method, path)
                if path == "/v1%2Fhello" and page.status == 404:
                    continue  # It is the API's, which says so in JSON.
                assert page.status == 401, (method, path)
                assert headers_are_strict(page)
                assert not SECRETS.search(page.text), page.text
                if method != "HEAD":
                    answers.add(page.text)
        assert len(answers) == 1, "an answer depends on the path"


@pytest.mark.parametrize("cookie", ["", "x", "y" * 43, "z" * 5000, "a=b", '"'])
async def test_a_wrong_cookie_gives_no_session(tmp_path: Path, cookie: str) -> None:
    async with running_mesh(tmp_path) as mesh:
        await invite(mesh)
        browser = Browser(mesh.client)
        browser.cookie = cookie
        page = await browser.call("GET", "/tokens")
        assert page.status == 401
        # The browser deletes it.
        assert browser.cookie == ""


async def test_a_websocket_needs_a_session_and_its_level(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        outsider, reader = Browser(mesh.client), await browser_of(mesh, "reader", "read")
        user = await browser_of(mesh, "user", "use")
        for browser, status in ((outsider, 401), (reader, 403)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await open_socket(browser, browser.origin)
            assert refused.value.status == status
        for origin in ("https://elsewhere.example", "null", ""):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await open_socket(user, origin)
            assert refused.value.status == 403
        socket = await open_socket(user, user.origin)
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"
        await socket.close()


async def open_socket(browser: Browser, origin: str) -> aiohttp.ClientWebSocketResponse[bool]:
    headers = browser.headers("GET") | ({"Origin": origin} if origin else {})
    return await browser.client.session.ws_connect(
        browser.origin + "/test/socket", headers=headers, ssl=browser.client.pin
    )


async def ends(response: aiohttp.ClientResponse) -> None:
    """Return once the connection of a stream was aborted."""
    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(response.content.read(), PATIENCE_S)
    response.close()


# ---- passes


async def test_a_session_is_a_cookie_of_this_host_that_scripts_cannot_read(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        browser = Browser(mesh.client)
        page = await browser.enter(await invite(mesh, ttl_s=600))
        flags = {part.strip() for part in page.headers["Set-Cookie"].split(";")[1:]}
        age = next(flag for flag in flags if flag.startswith("Max-Age="))
        assert flags - {age} == {"HttpOnly", "Path=/", "SameSite=Strict", "Secure"}
        assert 590 <= int(age.removeprefix("Max-Age=")) <= 600
        assert page.headers["Set-Cookie"].startswith(f"{COOKIE}=")
        assert COOKIE.startswith("__Host-")
        # The cookie is not the pass, and the pass is in no file of the coordinator.
        assert headers_are_strict(page)


async def test_neither_a_pass_nor_a_cookie_is_stored(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        secret = await invite(mesh)
        browser = Browser(mesh.client)
        await browser.enter(secret)
        listed = await mesh.admin("GET", "/v1/web/passes")
        content = b"".join(file.read_bytes() for file in mesh.home.state.rglob("*") if file.is_file())
        for text in (secret, browser.cookie):
            assert text
            assert text.encode() not in content
            assert text not in str(listed.body)


async def test_the_first_browser_binds_a_pass(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        secret = await invite(mesh)
        first, second = Browser(mesh.client), Browser(mesh.client)
        assert (await first.enter(secret)).status == 303
        assert (await first.call("GET", "/nothing")).status == 404
        assert (await second.enter(secret)).status == 403
        assert (await second.call("GET", "/nothing")).status == 401


async def test_of_two_browsers_at_once_one_gets_the_session(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        secret = await invite(mesh)
        browsers = [Browser(mesh.client) for _ in range(8)]
        pages = await asyncio.gather(*(browser.enter(secret) for browser in browsers))
        assert sorted(page.status for page in pages) == [303, *[403] * 7]


async def test_the_answer_does_not_reveal_why_a_pass_is_refused(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        used, revoked = await invite(mesh, "used"), await invite(mesh, "revoked")
        expired = await invite(mesh, "expired", ttl_s=60)
        await Browser(mesh.client).enter(used)
        assert (await mesh.admin("DELETE", "/v1/web/passes/revoked")).status == 200
        mesh.clock.ahead += 61
        pages = [await Browser(mesh.client).enter(secret) for secret in (used, revoked, expired, "x" * 43, "é", "")]
        assert {page.status for page in pages} == {403}
        assert len({page.text for page in pages}) == 1
        assert len({frozenset(set(page.headers) - {"Date"}) for page in pages}) == 1
        assert not SECRETS.search(pages[0].text.replace("name", ""))


async def test_wrong_passes_of_one_source_are_limited(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        secret = await invite(mesh)
        pages = [await Browser(mesh.client).enter(f"{n:043}") for n in range(12)]
        assert [page.status for page in pages] == [403] * 10 + [429] * 2
        # So it cannot be seen either whether one of the further ones is right; sessions are not concerned.
        assert (await Browser(mesh.client).enter(secret)).status == 429


async def test_the_whole_url_may_be_pasted(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        url = f"https://head:51888/enter#{await invite(mesh)}.{mesh.token.fingerprint.hex()}"
        assert (await Browser(mesh.client).enter(f" {url}\n")).status == 303


async def test_another_site_cannot_sign_a_browser_in(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        secret = await invite(mesh)
        for origin in ("https://elsewhere.example", "null"):
            page = await Browser(mesh.client).call("POST", "/enter", {"pass": secret}, {"Origin": origin})
            assert page.status == 403
        assert (await Browser(mesh.client).enter(secret)).status == 303


async def test_a_session_outlives_the_coordinators_restart_and_ends_with_its_pass(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        browser = await browser_of(mesh)
        home, head, token, cookie = mesh.home, mesh.head, mesh.token, browser.cookie
    async with running_server(home, head, token) as mesh:
        browser = Browser(mesh.client)
        browser.cookie = cookie
        assert (await browser.call("GET", "/nothing")).status == 404
        mesh.clock.ahead += 3601
        assert (await browser.call("GET", "/nothing")).status == 401


# ---- levels and CSRF


async def test_a_read_only_session_cannot_change_anything(tmp_path: Path) -> None:
    async with with_browser(tmp_path, "read") as (mesh, browser):
        await mesh.client.enrol(mesh.token, "gpu")
        admin = await browser_of(mesh, "boss", "admin")
        token = await admin.csrf("/tokens")
        before = [(await mesh.admin("GET", path)).body for path in ("/v1/tokens", "/v1/nodes", "/v1/web/passes")]
        form = {"csrf": token, "uses": "1", "ttl_s": "3600", "confirm": "gpu"}
        paths = {path for _, path in routes(mesh) if not path.startswith((*PUBLIC, "/signout"))}
        paths |= {"/nodes/gpu/remove", f"/tokens/{mesh.token.token_id}/revoke"}
        for path in sorted(paths):
            for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "LOCK"):
                page = await browser.call(method, path, form, {"X-CSRF-Token": token})
                assert page.status in (403, 405), (method, path, page.status)
        for path in ("/tokens", "/nodes/gpu/remove"):
            assert (await browser.call("GET", path)).status == 403
        after = [(await mesh.admin("GET", path)).body for path in ("/v1/tokens", "/v1/nodes", "/v1/web/passes")]
        assert before == after


async def test_a_session_for_use_is_not_an_administrators(tmp_path: Path) -> None:
    async with with_browser(tmp_path, "use") as (_, browser):
        assert (await browser.call("GET", "/tokens")).status == 403
        assert (await browser.call("POST", "/tokens", {"uses": "1", "ttl_s": "0"})).status == 403
        # A program's answer is its own: here it failed.
        assert (await browser.call("POST", "/test/failing")).status == 500


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 200),
        ({"csrf": None}, 403),
        ({"csrf": ""}, 403),
        ({"csrf": "0" * 64}, 403),
        ({"csrf": "é" * 64}, 403),
        ({"csrf": "other"}, 403),
        ({"Origin": None}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "https://127.0.0.1"}, 403),
        ({"Origin": "http"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
    ids=str,
)
async def test_a_change_needs_the_pages_own_form(tmp_path: Path, change: dict[str, str | None], status: int) -> None:
    async with with_browser(tmp_path, "admin") as (mesh, browser):
        form = {"csrf": await browser.csrf("/tokens"), "uses": "1", "ttl_s": "3600"}
        headers = browser.headers("POST")
        if change.get("csrf") == "other":
            change = {"csrf": await (await browser_of(mesh, "other", "admin")).csrf("/tokens")}
        if change.get("Origin") == "http":
            change = {"Origin": browser.origin.replace("https", "http")}
        for name, value in change.items():
            where = form if name == "csrf" else headers
            where.pop(name, None)
            if value is not None:
                where[name] = value
        before = len((await mesh.admin("GET", "/v1/tokens")).body["tokens"])  # type: ignore[arg-type]
        session, pin = mesh.client.session, mesh.client.pin
        async with session.post(browser.origin + "/tokens", data=form, headers=headers, ssl=pin) as answer:
            assert answer.status == status
        after = len((await mesh.admin("GET", "/v1/tokens")).body["tokens"])  # type: ignore[arg-type]
        assert after - before == (status == 200)


async def test_another_page_cannot_read_with_the_browsers_session(tmp_path: Path) -> None:
    async with with_browser(tmp_path, "read") as (_, browser):
        for site in ("cross-site", "same-site"):
            embedded = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
            assert (await browser.call("GET", "/nothing", headers=embedded)).status == 403
            followed = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
            assert (await browser.call("GET", "/nothing", headers=followed)).status == 404


# ---- administration


async def test_an_administrator_makes_and_revokes_tokens(tmp_path: Path) -> None:
    async with with_browser(tmp_path, "admin") as (mesh, browser):
        csrf = await browser.csrf("/tokens")
        page = await browser.call("POST", "/tokens", {"csrf": csrf, "uses": "3", "ttl_s": "86400", "hub": "on"})
        found = re.search(r"sudo meshray join (meshray1_[\w-]+)", page.text)
        assert found is not None
        listed = (await mesh.admin("GET", "/v1/tokens")).body["tokens"]
        assert isinstance(listed, list)
        made = listed[-1]
        assert (made["uses"], made["roles"], made["ephemeral"]) == (3, ["hub"], False)
        answer = await mesh.client.enrol(type(mesh.token).parse(found[1]), "gpu")
        assert answer.map.find("gpu") is not None
        page = await browser.call("POST", f"/tokens/{made['id']}/revoke", {"csrf": csrf})
        assert (page.status, page.headers["Location"]) == (303, "/tokens")
        page = await browser.call("GET", "/tokens")
        assert "revoked" in page.text
        assert found[1] not in page.text


@pytest.mark.parametrize("form", [{}, {"uses": "-1", "ttl_s": "0"}, {"uses": "1", "ttl_s": "9" * 30}, {"uses": "٣"}])
async def test_a_bad_form_is_an_error_page(tmp_path: Path, form: dict[str, str]) -> None:
    async with with_browser(tmp_path, "admin") as (_, browser):
        page = await browser.call("POST", "/tokens", {"csrf": await browser.csrf("/tokens"), **form})
        assert (page.status, "is not a number" in page.text) == (400, True)


async def test_a_node_is_removed_after_a_confirmation(tmp_path: Path) -> None:
    async with with_browser(tmp_path, "admin") as (mesh, browser):
        answer = await mesh.client.enrol(mesh.token, "gpu")
        agent = await mesh.client.agent(answer.credential)
        await agent.until({"head", "gpu"})
        csrf = await browser.csrf("/nodes/gpu/remove")
        asked = await browser.call("POST", "/nodes/gpu/remove", {"csrf": csrf})
        assert asked.status == 200
        assert "Remove gpu (10.99." in asked.text
        assert (await mesh.client.call("GET", "/v1/hello", credential=answer.credential)).body["accepted"] is True
        done = await browser.call("POST", "/nodes/gpu/remove", {"csrf": csrf, "confirm": "gpu"})
        assert done.status == 200
        assert "gpu was removed" in done.text
        assert await agent.until_closed() is not None
        assert (await mesh.client.call("GET", "/v1/hello", credential=answer.credential)).body["accepted"] is False
        for name, status in (("gpu", 404), ("head", 403), ("..", 404), ("%3Cb%3E", 404)):
            page = await browser.call("GET", f"/nodes/{name}/remove")
            assert page.status == status, name
            assert "<b>" not in page.text


# ---- the end of a session


async def test_a_revoked_pass_ends_its_streams_within_a_second(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        browser, other = await browser_of(mesh, "ana", "use"), await browser_of(mesh, "bob", "use")
        streams = [await browser.stream("/test/stream"), await other.stream("/test/stream")]
        for response in streams:
            assert await response.content.readline() == b"data: x\n"
        socket = await open_socket(browser, browser.origin)
        waiting = asyncio.get_running_loop().create_task(browser.call("GET", "/test/slow"))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert (await mesh.admin("DELETE", "/v1/web/passes/ana")).status == 200
        await ends(streams[0])
        assert (await socket.receive(PATIENCE_S)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        assert (await waiting).status == 401
        assert time.monotonic() - began < 1
        assert (await browser.call("GET", "/nothing")).status == 401
        assert await streams[1].content.readline() in (b"data: x\n", b"\n")
        assert (await other.call("GET", "/nothing")).status == 404
        streams[1].close()


async def test_an_expired_pass_ends_its_streams(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        browser = await browser_of(mesh)
        mesh.clock.ahead += 3599
        response = await browser.stream("/test/stream")
        await ends(response)
        assert (await browser.call("GET", "/nothing")).status == 401


async def test_a_sign_out_ends_the_session_and_its_streams(tmp_path: Path) -> None:
    async with with_browser(tmp_path, "admin") as (_, browser):
        cookie, response = browser.cookie, await browser.stream("/test/stream")
        page = await browser.call("POST", "/signout", {"csrf": await browser.csrf("/tokens")})
        assert (page.status, page.headers["Location"], browser.cookie) == (303, "/enter", "")
        await ends(response)
        browser.cookie = cookie
        assert (await browser.call("GET", "/nothing")).status == 401


async def test_a_members_link_opens_the_page_once_and_ends_with_the_member(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        answer = await mesh.client.enrol(mesh.token, "gpu")
        link = await mesh.client.call("POST", "/v1/web/session", credential=answer.credential)
        assert (link.body["level"], link.body["fingerprint"]) == ("use", mesh.token.fingerprint.hex())
        browser = Browser(mesh.client)
        assert (await browser.enter(str(link.body["secret"]))).status == 303
        assert (await Browser(mesh.client).enter(str(link.body["secret"]))).status == 403
        assert (await browser.call("GET", "/test/cookie")).status == 500
        response = await browser.stream("/test/stream")
        began = time.monotonic()
        assert (await mesh.admin("DELETE", "/v1/nodes/gpu")).status == 200
        await ends(response)
        assert time.monotonic() - began < 1
        assert (await browser.call("GET", "/nothing")).status == 401


async def test_a_link_is_forgotten_with_its_node_and_after_two_minutes(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        answer = await mesh.client.enrol(mesh.token, "gpu")
        links = [
            str((await mesh.client.call("POST", "/v1/web/session", credential=answer.credential)).body["secret"])
            for _ in range(2)
        ]
        mesh.clock.ahead += 121
        assert (await Browser(mesh.client).enter(links[0])).status == 403
        fresh = await mesh.client.call("POST", "/v1/web/session", credential=answer.credential)
        await mesh.admin("DELETE", "/v1/nodes/gpu")
        assert (await Browser(mesh.client).enter(str(fresh.body["secret"]))).status == 403


async def test_the_coordinators_node_administers_with_its_link(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        link = await mesh.admin("POST", "/v1/web/session")
        browser = Browser(mesh.client)
        await browser.enter(str(link.body["secret"]))
        assert (link.body["level"], (await browser.call("GET", "/tokens")).status) == ("admin", 200)


# ---- members over the overlay


async def test_a_members_address_reads_without_a_pass(tmp_path: Path) -> None:
    # Loopback addresses take the place of the overlay's: the kernel lets a client choose its own.
    home, head, token = make_mesh(tmp_path, f"127.{100 + os.getpid() % 100}.0.0/16")
    own = str(head.map.nodes[head.node_id].ip)
    server = Server(home, port=0, hosts=(own, "127.0.0.1"), settle_s=0)
    await server.start()
    try:
        async with client_of(server.port, token.fingerprint) as client:
            gpu = await client.enrol(token, "gpu")
            ip = str(gpu.map.nodes[gpu.node_id].ip)
            member = OverlayClient(ip, own, server.port, token.fingerprint)
            assert await member.status("/nothing") == 404
            for path in ("/tokens", "/nodes/gpu/remove"):
                assert await member.status(path) == 403
            assert await member.status("/nothing", method="POST", headers={"Origin": f"https://{own}"}) == 403
            # It has no cookie, so other accounts of that machine must not get a session's permissions.
            assert await member.status("/test/cookie") == 401
            # A name of another site that leads there is not the coordinator's address.
            assert await member.status("/nothing", headers={"Host": "elsewhere.example"}) == 401
            # Another address of the overlay, and the member at another address of the coordinator.
            assert await OverlayClient(ip[:-1] + "99", own, server.port, token.fingerprint).status("/nothing") == 401
            assert await OverlayClient(ip, "127.0.0.1", server.port, token.fingerprint).status("/nothing") == 401
            response = asyncio.get_running_loop().create_task(member.status("/test/stream"))
            await asyncio.sleep(0.3)
            assert not response.done()
            reply = await client.call("DELETE", "/v1/nodes/gpu", credential=head.credential)
            assert reply.status == 200
            with pytest.raises(aiohttp.ClientError):
                await asyncio.wait_for(response, 1)
            assert await member.status("/nothing") == 401
    finally:
        await server.stop()


@dataclass
class OverlayClient:
    """A client with an address of the overlay."""

    ip: str
    coordinator: str
    port: int
    fingerprint: bytes

    async def status(self, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> int:
        """Return the status of the answer, which is read to its end."""
        connector = aiohttp.TCPConnector(local_addr=(self.ip, 0))
        url = f"https://{self.coordinator}:{self.port}{path}"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, url, headers=headers, ssl=aiohttp.Fingerprint(self.fingerprint)) as response,
        ):
            await response.read()
            return response.status


# ---- faults


async def test_a_handlers_failure_is_a_page_without_its_cause(tmp_path: Path) -> None:
    async with with_browser(tmp_path, "read") as (_, browser):
        page = await browser.call("GET", "/test/failing")
        assert (page.status, "secret" in page.text, headers_are_strict(page)) == (500, False, True)


async def test_a_huge_form_is_refused(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        page = await Browser(mesh.client).call("POST", "/enter", {"pass": "x" * 100_000})
        assert page.status == 413


async def test_requests_of_one_session_are_limited_and_streams_do_not_count(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        browser, other = await browser_of(mesh, "ana"), await browser_of(mesh, "bob")
        streams = [await browser.stream("/test/stream") for _ in range(3)]
        loop = asyncio.get_running_loop()
        slow = [loop.create_task(browser.call("GET", "/test/slow")) for _ in range(32)]
        await asyncio.sleep(0.5)
        page = await browser.call("GET", "/nothing")
        assert (page.status, "32 requests" in page.text) == (429, True)
        assert (await other.call("GET", "/nothing")).status == 404
        assert (await mesh.admin("GET", "/v1/nodes")).status == 200
        await mesh.admin("DELETE", "/v1/web/passes/ana")
        assert {(await task).status for task in slow} == {401}
        for response in streams:
            await ends(response)


async def test_streams_of_one_session_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshray.coordinator.connection_limits.MAX_STREAMS_OF_SESSION", 3)
    async with running_mesh(tmp_path) as mesh:
        browser, other = await browser_of(mesh, "ana"), await browser_of(mesh, "bob")
        calm = await other.stream("/test/stream")
        streams = [await browser.stream("/test/stream") for _ in range(4)]
        await ends(streams[0])
        for response in (calm, *streams[1:]):
            assert await response.content.readline() in (b"data: x\n", b"\n")
            response.close()


async def test_a_stream_lasts_longer_than_a_request_may(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, ConnectionLimits(request_s=0.5)) as mesh:
        browser = await browser_of(mesh)
        response = await browser.stream("/test/stream")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert await response.content.readline()
        response.close()
        # A request that holds nothing has the limit.
        with pytest.raises(aiohttp.ClientError):
            await browser.call("GET", "/test/slow")
