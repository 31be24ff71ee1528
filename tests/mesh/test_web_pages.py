"""The pages of a real coordinator over TLS, with agents that report over real WebSockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from meshray.model.path import PathKind, Transport
from meshray.model.token import Token
from meshray.protocol.codec import encode
from meshray.protocol.connection import PathReport, ReportedPath
from meshray.web import pages
from meshray.web.live import Live

from .coordinator_harness import Agent, Running, running_mesh
from .mesh import until
from .page_client import Browser, browser_of

DIRECT = ReportedPath(PathKind.DIRECT, Transport.UDP, 12.0, 0.0, 1420)
RELAYED = ReportedPath(PathKind.HUB, Transport.UDP, 48.0, 0.0, 1380, "both NATs are symmetric")


@dataclass
class Node:
    id: str
    name: str
    agent: Agent

    async def report(self, site: str, **paths: ReportedPath) -> None:
        """Send a report; the paths are given as ``n_<id>``, because an id may begin with a digit."""
        of_ids = {key.removeprefix("n_"): path for key, path in paths.items()}
        await self.agent.socket.send_str(encode(PathReport(site, time.time() - 3600, (8000,), 1000, 500, of_ids)))


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[tuple[Running, Node, Node]]:
    async with running_mesh(folder) as mesh:
        token = await mesh.admin("POST", "/v1/tokens", {"uses": 0})
        nodes = []
        for name in ("home", "office"):
            answer = await mesh.client.enrol(Token.parse(str(token.body["token"])), name)
            nodes.append(Node(answer.node_id, name, await mesh.client.agent(answer.credential)))
        await nodes[0].agent.until_online("home", True)
        one, other = nodes
        await one.report("berlin", **{f"n_{other.id}": DIRECT})
        await other.report("paris", **{f"n_{one.id}": DIRECT})
        observations = mesh.server.service.observations
        await until(lambda: {one.id, other.id} <= set(observations.nodes), "both have reported")
        yield mesh, one, other


async def event(stream: aiohttp.ClientResponse, kind: str = "change") -> dict[str, Any]:
    """Return the data of the next event of this kind."""
    found = ""
    while True:
        line = (await asyncio.wait_for(stream.content.readline(), 15)).decode().rstrip("\n")
        assert line or not stream.content.at_eof(), "the stream ended"
        if line.startswith("event: "):
            found = line.removeprefix("event: ")
        elif line.startswith("data: ") and found == kind:
            data = json.loads(line.removeprefix("data: "))
            return data if isinstance(data, dict) else {}


async def events_of(browser: Browser, path: str) -> aiohttp.ClientResponse:
    """Open a page, and then its events, as its script does."""
    page = await browser.call("GET", path)
    assert page.status == 200, page.text
    address = page.text.split('data-events="')[1].split('"')[0].replace("&amp;", "&")
    return await browser.stream(address)


async def test_the_pages_show_nodes_sites_and_paths(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (mesh, one, other):
        browser = await browser_of(mesh)
        page = await browser.call("GET", "/")
        for text in ("home", "office", "berlin", "paris", "12.0 ms", f'id="e-{min(one.id, other.id)}'):
            assert text in page.text
        matrix = await browser.call("GET", "/matrix")
        assert '<td class="d">12' in matrix.text
        node = await browser.call("GET", "/nodes/home")
        assert ">1420</td>" in node.text and 'href="/serve/home/8000/"' in node.text
        assert (await browser.call("GET", "/?node=home")).text.count("Open node") == 1
        assert (await browser.call("GET", "/nodes/nobody")).status == 404
        assert (await browser.call("GET", "/events?page=node&node=nobody")).status == 404
        assert (await browser.call("GET", "/events?page=else")).status == 404
        assert (await browser.call("HEAD", "/events?page=map")).status == 200


async def test_a_change_of_a_path_reaches_the_open_page_within_a_second(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (mesh, one, other):
        browser = await browser_of(mesh)
        stream = await events_of(browser, "/")
        await asyncio.sleep(0.5)
        started = time.monotonic()
        await one.report("berlin", **{f"n_{other.id}": RELAYED})
        line = f"e-{min(one.id, other.id)}-{max(one.id, other.id)}"
        while True:
            sent = (await event(stream)).get("set", {})
            text = sent.get(line) or sent.get("map", "")
            if "both NATs are symmetric" in text:
                break
        assert time.monotonic() - started < 1.0
        stream.close()


async def test_only_an_admin_pass_shows_the_administration(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (mesh, _, _):
        reader = await browser_of(mesh)
        admin = await browser_of(mesh, "root", "admin")
        address = "/nodes/home/remove"
        assert address not in (await reader.call("GET", "/nodes/home")).text
        assert address in (await admin.call("GET", "/nodes/home")).text
        assert "/nodes/head/remove" not in (await admin.call("GET", "/nodes/head")).text


async def test_a_browser_that_never_reads_is_disconnected_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "WRITE_S", 0.5)
    async with two_nodes(tmp_path) as (mesh, one, other):
        browser = await browser_of(mesh)
        reader, writer = await mesh.client.raw(receive_buffer=4096)
        headers = "".join(f"{name}: {value}\r\n" for name, value in browser.headers("GET").items())
        request = f"GET /events?page=map HTTP/1.1\r\nHost: 127.0.0.1:{mesh.client.port}\r\n{headers}\r\n"
        # asyncio reads ahead on its own: without this the kernel's buffers never fill.
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        writer.write(request.encode())
        stream = await events_of(browser, "/")
        await until(lambda: live(mesh).viewers == 2, "both follow")
        deadline = time.monotonic() + 60
        large = b'event: change\ndata: {"at": 1, "padding": "' + b"x" * 400_000 + b'"}\n\n'
        while live(mesh).viewers > 1:
            assert time.monotonic() < deadline, "the browser that does not read is still connected"
            for channel in live(mesh)._channels.values():
                channel.send(large)
            await event(stream)
        started = time.monotonic()
        await one.report("berlin", **{f"n_{other.id}": DIRECT})
        await event(stream)
        assert time.monotonic() - started < 1.0
        stream.close()
        writer.close()
        assert reader is not None


def live(mesh: Running) -> Live:
    runner = mesh.server._runner
    assert runner is not None
    return runner.app[pages.LIVE]
