"""The page of a mesh of 200 nodes: first paint, delay of a change, and the coordinator's CPU time.

The coordinator is a separate process. 200 agents are simulated here: each has a real WebSocket over TLS and reports
199 paths. The agent of the coordinator's node answers the question for its status. The browsers are real.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from playwright.async_api import Browser, Page, async_playwright

from meshray.model.enrol import EnrolAnswer
from meshray.model.path import PathKind, Transport
from meshray.model.token import Token
from meshray.protocol.codec import encode, to_json
from meshray.protocol.connection import Answer, Ask, PathReport, ReportedPath, read_coordinator
from meshray.protocol.status import NodeStatus, RayStatus, Status, Totals
from tests.bench.figures import Figure, Measured, Target
from tests.mesh.coordinator_harness import Agent, Client, Running, client_of, make_mesh
from tests.mesh.page_client import invite
from tests.web.browser import ARGUMENTS

TITLE = "The page of a mesh of 200 nodes"
HOW = """
The coordinator in a separate process, 200 simulated agents on real WebSockets over TLS, each with 199 paths. Every
agent reports every 5 s with new round trips, and a path changes its kind every second. The browsers are headless
Chromium on this machine, and share its cores with the agents and the coordinator.
"""
NODES, PAGES, SITES = 200, 5, 5
REPORT_S = 5.0
WINDOW_S = 20.0
PAINTS, CHANGES = 5, 8
GIB = float(2**30)


class SimulatedNode:
    """A node: its connection, and its reports."""

    def __init__(self, answer: EnrolAnswer, agent: Agent, name: str, site: str) -> None:
        self.id, self.name, self.site, self.agent = answer.node_id, name, site, agent
        self.rx = 0
        self.paths: dict[str, ReportedPath] = {}

    async def report(self) -> None:
        self.rx += random.randrange(1 << 24)
        report = PathReport(self.site, time.time() - 86400, (8000,), self.rx, self.rx // 3, self.paths)
        await self.agent.socket.send_str(encode(report))

    async def run(self, status: Callable[[], Status], delay_s: float) -> None:
        """Report regularly, read all messages, and answer questions."""
        reading = asyncio.get_running_loop().create_task(self._read(status))
        try:
            await asyncio.sleep(delay_s)
            while True:
                for peer, path in self.paths.items():
                    rtt = (path.rtt_ms or 1.0) * random.uniform(0.9, 1.1)
                    self.paths[peer] = msgspec.structs.replace(path, rtt_ms=round(min(rtt, 200.0), 2))
                await self.report()
                await asyncio.sleep(REPORT_S)
        finally:
            reading.cancel()

    async def _read(self, status: Callable[[], Status]) -> None:
        async for message in self.agent.socket:
            # Only the coordinator's node is asked; decoding every map would measure this process.
            if '"ask"' in message.data[:40]:
                question = read_coordinator(message.data)
                assert isinstance(question, Ask)
                await self.agent.socket.send_str(encode(Answer(question.id, to_json(status()))))


class SimulatedMesh:
    """The nodes, and the status of the first one's agent."""

    def __init__(self, nodes: list[SimulatedNode]) -> None:
        self.nodes = nodes
        for node in nodes:
            near = [other for other in nodes if other is not node]
            node.paths = {
                other.id: ReportedPath(
                    PathKind.HUB if random.random() < 0.05 else PathKind.DIRECT,
                    Transport.UDP,
                    random.uniform(0.3, 2) if other.site == node.site else random.uniform(8, 80),
                    0.0,
                    1420,
                )
                for other in near
            }

    def status(self) -> Status:
        """Return a status whose use of Ray's resources changes."""
        entries = tuple(
            NodeStatus(
                node.name,
                f"10.99.0.{place + 1}",
                "head" if not place else "worker",
                online=True,
                ray=RayStatus(
                    alive=True,
                    resources={"CPU": 16.0, "memory": 64 * GIB, "object_store_memory": 18 * GIB},
                    used={"CPU": float(random.randrange(16)) if place % 10 == 0 else 4.0, "memory": 9 * GIB},
                ),
                since=1_700_000_000.0,
            )
            for place, node in enumerate(self.nodes)
        )
        return Status("lab", 1, self.nodes[0].name, nodes=entries, totals=Totals(16.0 * NODES, None, 64 * GIB * NODES))

    async def flap(self, one: SimulatedNode, other: SimulatedNode, kind: PathKind, reason: str) -> None:
        """Let a node report another kind of path to another node at once."""
        one.paths[other.id] = ReportedPath(kind, Transport.UDP, 40.0, 0.0, 1380, reason)
        await one.report()


def measure(report: Callable[[str], None]) -> Measured:
    """Measure one mesh."""
    return asyncio.run(_measure(report))


async def _measure(report: Callable[[str], None]) -> Measured:
    with tempfile.TemporaryDirectory(prefix="meshray-bench-web-") as folder:
        home, head, token = make_mesh(Path(folder))
        port = _free_port()
        environment = {**os.environ, "MESHRAY_HOME": str(home.state)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshray.coordinator", "--port", str(port), "--listen", "127.0.0.1"),
            env=environment,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with client_of(port, token.fingerprint) as client:
                report(f"enrolling {NODES} nodes")
                nodes = await _enrolled(client, head, token)
                mesh = SimulatedMesh(nodes)
                tasks = [
                    asyncio.get_running_loop().create_task(node.run(mesh.status, REPORT_S * place / NODES))
                    for place, node in enumerate(nodes)
                ]
                try:
                    return await _with_browsers(report, process.pid, client, head, mesh)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()


async def _enrolled(client: Client, head: EnrolAnswer, token: Token) -> list[SimulatedNode]:
    for _ in range(100):
        try:
            await client.hello()
            break
        except OSError:
            await asyncio.sleep(0.1)
    own = await client.agent(head.credential)
    nodes = [SimulatedNode(head, own, "head", "site-0")]
    made = await client.call("POST", "/v1/tokens", {"uses": 0}, head.credential)
    anyone = Token.parse(str(made.body["token"]))
    for place in range(1, NODES):
        answer = await client.enrol(anyone, f"node-{place}")
        agent = await client.agent(answer.credential)
        nodes.append(SimulatedNode(answer, agent, f"node-{place}", f"site-{place % SITES}"))
    return nodes


async def _with_browsers(
    report: Callable[[str], None], pid: int, client: Client, head: EnrolAnswer, mesh: SimulatedMesh
) -> Measured:
    await asyncio.sleep(2 * REPORT_S)
    report("without a page")
    idle = await _cpu(pid, WINDOW_S)
    async with _chromium() as browser:
        pages = [await _opened(browser, client, head, f"user-{number}") for number in range(PAGES)]
        report("first paint")
        paints = [await _paint(pages[0], client) for _ in range(PAINTS)]
        report(f"{PAGES} open pages")
        await asyncio.sleep(3)
        flapping = asyncio.get_running_loop().create_task(_flap(mesh))
        busy = await _cpu(pid, WINDOW_S)
        flapping.cancel()
        report("delay of a change")
        delays = [await _delay(pages, mesh, number) for number in range(CHANGES)]
    return Measured(
        (
            Figure("first paint", "s", tuple(paints), Target(1.0, of="max")),
            Figure("a change of a path on the page", "s", tuple(delays), Target(1.0, of="max")),
            Figure(f"coordinator, {PAGES} pages", "% of a core", (busy,), Target(10.0)),
            Figure("coordinator, no page", "% of a core", (idle,)),
        ),
        (f"{os.cpu_count()} cores for the coordinator, {NODES} agents and the browser together.",),
    )


@asynccontextmanager
async def _chromium() -> AsyncIterator[Browser]:
    program = shutil.which("chromium")
    assert program, "no chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


async def _opened(browser: Browser, client: Client, head: EnrolAnswer, name: str) -> Page:
    """Return a page in a browser profile of its own, with a new pass."""
    # The page's policy forbids the expressions by which playwright waits.
    page = await browser.new_page(ignore_https_errors=True, bypass_csp=True, viewport={"width": 1440, "height": 900})

    async def admin(method: str, path: str, body: object = None) -> Any:
        return await client.call(method, path, body, head.credential)

    secret = await invite(cast("Running", SimpleNamespace(admin=admin)), name)
    await page.goto(f"https://127.0.0.1:{client.port}/enter#{secret}.{client.fingerprint.hex()}")
    await page.wait_for_selector("#rows tr")
    return page


async def _paint(page: Page, client: Client) -> float:
    """Return the seconds from the start of the navigation to the first contentful paint."""
    await page.goto(f"https://127.0.0.1:{client.port}/", wait_until="load")
    wait = "performance.getEntriesByName('first-contentful-paint').length > 0"
    await page.wait_for_function(wait)
    return float(await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")) / 1000


async def _delay(pages: list[Page], mesh: SimulatedMesh, number: int) -> float:
    """Return the seconds from a report to the change of the table on every page."""
    # A path that is lost raises both nodes' numbers in the table.
    one, other = mesh.nodes[10 + number], mesh.nodes[100 + number]
    start = time.monotonic()
    await mesh.flap(one, other, PathKind.NONE, "cut")
    row = f"document.getElementById('r-{one.id}').textContent.includes('none')"
    await asyncio.gather(*(page.wait_for_function(row, polling=20) for page in pages))
    return time.monotonic() - start


async def _flap(mesh: SimulatedMesh) -> None:
    while True:
        one, other = random.sample(mesh.nodes[150:], 2)
        await mesh.flap(one, other, random.choice((PathKind.HUB, PathKind.DIRECT)), "flapping")
        await asyncio.sleep(1)


async def _cpu(pid: int, seconds: float) -> float:
    """Return the share of a core that a process uses, percent."""
    before, start = _ticks(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return (_ticks(pid) - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - start) * 100


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
