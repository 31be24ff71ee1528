"""The control plane of large meshes: a restart of the coordinator, joins, and one change, with thousands of agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshray.errors import MeshrayError
from meshray.model.address import Endpoint
from meshray.model.enrol import EnrolAnswer
from meshray.model.token import Token
from tests.bench.crowd import Machine
from tests.bench.figures import Figure, Measured, Target
from tests.lab.host import REPOSITORY
from tests.mesh.coordinator_harness import Client, client_of, make_mesh
from tests.mesh.process_harness import CoordinatorProcess, add_members, coordinator_process

SIZES = (1000, 3000, 5000)
TITLE = f"The coordinator with {', '.join(f'{size:,}' for size in SIZES)} agents"
HOW = """
The coordinator is a real process. Its members are in the database beforehand; their agents are simulated by one other
process, with the agent's own client and messages (`tests/bench/links.py`), all from one address. Both share the cores.
The coordinator is started, all agents connect; it is killed and started again, and all come back; 50 lose their
connections at once; one node is drained and taken back, ten times. With 3,000 members, machines join for 30 s, 100 per
second. "All connected" is when each agent has the map. Bytes are the payload of WebSocket messages.
"""
#: The time for all agents to connect, seconds.
LIMIT_S = 60.0
PATIENCE_S = 300.0
CHANGES = 10
OUTAGE = 50
JOINED_AT, JOINS_PER_S, JOINS_S = 3000, 100, 30
MIB = 1 << 20


class Links:
    """The process of the agents, and its last report."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.last: Mapping[str, Any] = {"connected": 0, "closed": {}, "complete": {}, "sent": 0, "kinds": {}}

    @property
    def connected(self) -> int:
        """The number of agents that have the map."""
        return int(self.last["connected"])

    async def read(self) -> None:
        """Take the next report."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_S)
        if not line:
            raise RuntimeError("the process of the agents ended")
        self.last = json.loads(line)

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Read reports until this holds. Raises TimeoutError."""
        ends = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > ends:
                raise TimeoutError(f"{what}: {dict(self.last)}")
            await self.read()

    async def follow(self, seconds: float) -> None:
        """Read reports for so long."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            await self.read()

    def cut(self, agents: int) -> None:
        """End the connections of so many agents."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{agents}\n".encode())

    def closed(self) -> int:
        """Return how many connections ended so far."""
        return sum(self.last["closed"].values())


@contextlib.asynccontextmanager
async def links(port: int, token: Token, credentials: Sequence[str]) -> AsyncIterator[Links]:
    """Run the agents of these members."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.links"),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MIB,
    )
    assert process.stdin is not None
    given = {"port": port, "pin": token.fingerprint.hex(), "credentials": list(credentials)}
    process.stdin.write(json.dumps(given).encode() + b"\n")
    try:
        yield Links(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass
class Row:
    """What was measured with one number of agents."""

    first_s: float = 0.0
    return_s: float = 0.0
    lost: int = 0
    sent: int = 0
    cpu_s: float = 0.0
    resident: int = 0
    change_s: tuple[float, ...] = ()
    change_bytes: float = 0.0
    change_cpu_s: float = 0.0
    outage_bytes: float = 0.0
    joins_per_s: float = 0.0
    join_cpu_s: float = 0.0
    failed_joins: int = 0


async def measure_one(size: int, report: Callable[[str], None]) -> Row:
    """Measure with so many agents."""
    folder, row = Path(tempfile.mkdtemp(prefix="meshray-scale-")), Row()
    try:
        log = folder / "coordinator.log"
        home, head, token = make_mesh(folder)
        credentials = add_members(home, size)
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(coordinator_process(home, log))
            began = time.monotonic()
            crowd = await stack.enter_async_context(links(first.port, token, credentials))
            await crowd.until(lambda: crowd.connected == size, "the agents connect")
            row.first_s = time.monotonic() - began
            await crowd.follow(3)
            row.resident, row.cpu_s = first.resident_bytes(), first.cpu_s()
            report(f"{size:,} connected in {row.first_s:.1f} s, {row.resident / MIB:.0f} MiB, CPU {row.cpu_s:.1f} s")
            sent, closed = int(crowd.last["sent"]), crowd.closed()
            await first.kill()
            again = await stack.enter_async_context(coordinator_process(home, log, first.port))
            began = time.monotonic()
            await crowd.until(lambda: crowd.closed() >= closed + size and crowd.connected == size, "the agents return")
            row.return_s = time.monotonic() - began
            await crowd.follow(3)
            row.lost = size - crowd.connected
            row.sent, row.cpu_s = int(crowd.last["sent"]) - sent, again.cpu_s()
            row.resident = max(row.resident, again.resident_bytes())
            report(f"{size:,} returned in {row.return_s:.1f} s, {row.sent / MIB:.0f} MiB, CPU {row.cpu_s:.1f} s")
            client = await stack.enter_async_context(client_of(again.port, token.fingerprint))
            await measure_changes(row, again, client, head, crowd)
            sent = int(crowd.last["sent"])
            crowd.cut(OUTAGE)
            await crowd.follow(3)
            await crowd.until(lambda: crowd.connected == size, "the agents return after an outage")
            row.outage_bytes = (int(crowd.last["sent"]) - sent) / OUTAGE
            if size == JOINED_AT:
                await measure_joins(row, again, client, head, token, crowd)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return row


async def measure_changes(
    row: Row, process: CoordinatorProcess, client: Client, head: EnrolAnswer, crowd: Links
) -> None:
    """Drain a node and take it back, several times."""
    took, cpu_s, sent = list[float](), process.cpu_s(), int(crowd.last["sent"])
    for number in range(CHANGES):
        known = set(crowd.last["complete"])
        began = time.monotonic()
        reply = await client.call("PATCH", "/v1/nodes/w7", {"drained": number % 2 == 0}, head.credential)
        assert reply.status == 200, reply.body
        await crowd.until(lambda known=known: bool(set(crowd.last["complete"]) - known), "a change arrives")  # type: ignore[misc]
        took.append(max(crowd.last["complete"].values()) - began)
        await crowd.follow(0.5)
    row.change_s = tuple(took)
    row.change_bytes = (int(crowd.last["sent"]) - sent) / CHANGES / crowd.connected
    row.change_cpu_s = (process.cpu_s() - cpu_s) / CHANGES


async def measure_joins(
    row: Row, process: CoordinatorProcess, client: Client, head: EnrolAnswer, token: Token, crowd: Links
) -> None:
    """Let machines join at a constant rate, with two tokens: each admits 2,000 at once and then 5 per second."""
    made = await client.call("POST", "/v1/tokens", {"uses": 0}, head.credential)
    tokens = (token, Token.parse(str(made.body["token"])))
    local = [
        Token(each.mesh_id, (Endpoint("127.0.0.1", client.port),), each.fingerprint, each.token_id, each.secret)
        for each in tokens
    ]
    count = JOINS_PER_S * JOINS_S
    machines = [Machine.named(f"join-{number}", local[number % 2]) for number in range(count)]
    failed = 0

    async def join(machine: Machine, token: Token) -> None:
        nonlocal failed
        try:
            await machine.enrol(token)
        except (MeshrayError, OSError):
            failed += 1

    began, cpu_s = time.monotonic(), process.cpu_s()
    reading = asyncio.get_running_loop().create_task(crowd.follow(JOINS_S))
    joins = []
    for number, machine in enumerate(machines):
        await asyncio.sleep(began + number / JOINS_PER_S - time.monotonic())
        joins.append(asyncio.get_running_loop().create_task(join(machine, local[number % 2])))
    await asyncio.wait_for(asyncio.gather(*joins), PATIENCE_S)
    took = time.monotonic() - began
    await reading
    row.joins_per_s, row.failed_joins = (count - failed) / took, failed
    row.join_cpu_s = (process.cpu_s() - cpu_s) / count


def measure(report: Callable[[str], None]) -> Measured:
    """Measure each size once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = {size: asyncio.run(measure_one(size, report)) for size in SIZES}
    return Measured(tuple(figure for size, row in rows.items() for figure in figures(size, row)))


def figures(size: int, row: Row) -> list[Figure]:
    """Return the figures of one size; the targets are for the largest."""
    is_largest = size == SIZES[-1]

    def figure(what: str, unit: str, value: float | tuple[float, ...], target: Target) -> Figure:
        samples = value if isinstance(value, tuple) else (value,)
        return Figure(f"{size:,}: {what}", unit, samples, target if is_largest else None)

    found = [
        figure("all connected after the first start", "s", row.first_s, Target(LIMIT_S)),
        figure("all connected after kill -9 and a start", "s", row.return_s, Target(LIMIT_S)),
        figure("agents lost by it", "", float(row.lost), Target(0)),
        figure("coordinator's CPU time for it", "s", row.cpu_s, Target(LIMIT_S)),
        Figure(f"{size:,}: sent for it", "MiB", (row.sent / MIB,)),
        figure("coordinator's memory", "MiB", row.resident / MIB, Target(700)),
        figure("a change reaches the last agent", "s", row.change_s, Target(1.0, of="max")),
        figure("bytes to each agent for it", "B", row.change_bytes, Target(300)),
        Figure(f"{size:,}: coordinator's CPU time for it", "ms", (row.change_cpu_s * 1000,)),
        Figure(f"{size:,}: sent for each of {OUTAGE} agents that come back", "KiB", (row.outage_bytes / 1024,)),
    ]
    if size == JOINED_AT:
        found += [
            Figure(f"{size:,}: joins", "1/s", (row.joins_per_s,), Target(0.95 * JOINS_PER_S, True)),
            Figure(f"{size:,}: failed joins", "", (float(row.failed_joins),), Target(0)),
            Figure(f"{size:,}: coordinator's CPU time for a join", "ms", (row.join_cpu_s * 1000,)),
        ]
    return found
