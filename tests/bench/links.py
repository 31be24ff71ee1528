"""Many agents in one process, as the coordinator sees them: each holds a connection and follows the map.

    python -m tests.bench.links < members.json

They use the agent's own client (`meshray.client.coordinator`) and messages (`meshray.protocol.connection`), come back
as an agent does, and show the map that they have. Nothing is behind them: no WireGuard, no Ray. The first line of the
input has the coordinator and the members; each further line is an order. The output has one line of JSON per 0.2 s.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from meshray.agent.backoff import backoff_s
from meshray.client.coordinator import Connection, Coordinator
from meshray.client.dialer import ComeAgainError
from meshray.errors import MeshrayError
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.model.enrol import FIELDS_ABILITY, PACKED_ABILITY, RESUME_ABILITY
from meshray.protocol.connection import Hello, RayInstance
from meshray.protocol.forms import VersionsForm

#: The interval of reports, seconds.
REPORT_S = 0.2
#: A connection that lasted this long was not closed by a busy coordinator, seconds: as in the agent.
SETTLED_S = 10.0
#: The number of revisions whose arrival at the last agent is remembered.
REMEMBERED = 2000


class _Text(msgspec.Struct):
    """What the agents read of a message of the map; a real one decodes all of it, which is not measured here."""

    type: str
    map: _Map | None = None
    change: _Map | None = None
    journal: str = ""
    data: str = ""


class _Map(msgspec.Struct):
    revision: int


@dataclass(frozen=True)
class Arrived:
    """A message that an agent received.

    Attributes:
        revision: of the map after it; None: it does not concern the map.
        journal: of a whole map; empty for a change.
    """

    kind: str
    revision: int | None = None
    journal: str = ""


@functools.lru_cache(64)
def arrived(text: str) -> Arrived:
    """Return what is in this message; thousands of agents receive the same one."""
    read = msgspec.json.decode(text, type=_Text)
    if read.type == "packed_map":
        unpacked = msgspec.json.decode(zlib.decompress(base64.b64decode(read.data)), type=_Text)
        return replace(_of(read), journal=unpacked.journal)
    return _of(read)


def _of(read: _Text) -> Arrived:
    mesh_map = read.map or read.change
    return Arrived(read.type, mesh_map.revision if mesh_map is not None else None, read.journal)


@dataclass
class Counts:
    """What all agents of this process together saw.

    Attributes:
        connected: agents that are connected and have the map.
        opened, failed: connections that were opened, and attempts that failed.
        refused: attempts that were asked to come again later.
        closed: ends of connections, by the closing code; 0: without one.
        kinds: messages by their type.
        sent: characters of all messages that arrived.
        reached: how many agents have had each revision.
        complete: when the last of them had it, monotonic seconds.
    """

    connected: int = 0
    opened: int = 0
    failed: int = 0
    refused: int = 0
    closed: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    reached: dict[int, int] = field(default_factory=dict)
    complete: dict[int, float] = field(default_factory=dict)

    def report(self) -> Mapping[str, object]:
        """Return the counts as JSON."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "at": time.monotonic(),
            "connected": self.connected,
            "opened": self.opened,
            "failed": self.failed,
            "refused": self.refused,
            "closed": {str(code): count for code, count in self.closed.items()},
            "kinds": dict(self.kinds),
            "sent": self.sent,
            "complete": {str(revision): at for revision, at in list(self.complete.items())[-20:]},
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }


class SimulatedAgent:
    """One member's agent.

    Attributes:
        connection: None while it is not connected.
        revision: of the map that it has.
    """

    def __init__(self, coordinator: Coordinator, counts: Counts, hello: Hello) -> None:
        self.connection: Connection | None = None
        self.revision = 0
        self._coordinator = coordinator
        self._counts = counts
        self._hello = hello
        self._journal = ""
        self._has_map = False

    async def run(self) -> None:
        """Keep a connection until cancelled."""
        attempt = 0
        while True:
            after_s = 0.0
            held = f" {RESUME_ABILITY}={self._journal}:{self.revision}" if self._journal else ""
            accepts = f"{PACKED_ABILITY} {FIELDS_ABILITY}{held}"
            opened = time.monotonic()
            try:
                self.connection = await self._coordinator.open_connection(accepts)
                self._counts.opened += 1
                opened = time.monotonic()
                await self._follow(self.connection)
            except ComeAgainError as error:
                self._counts.refused += 1
                after_s = error.after_s + backoff_s(0, first_s=1.0)
            except (MeshrayError, OSError, asyncio.TimeoutError):
                self._counts.failed += 1
            finally:
                attempt = await self._end(attempt, opened)
            await asyncio.sleep(after_s or backoff_s(attempt, first_s=0.2))
            attempt += 1

    async def _follow(self, connection: Connection) -> None:
        counts = self._counts
        await connection.send(self._hello)
        await connection.send(RayInstance(""))
        async for message in connection.socket:
            counts.sent += len(message.data)
            found = arrived(message.data)
            counts.kinds[found.kind] += 1
            if found.revision is None:
                continue
            self.revision = found.revision
            self._journal = found.journal or self._journal
            if not self._has_map:
                self._has_map = True
                counts.connected += 1
            reached = counts.reached[found.revision] = counts.reached.get(found.revision, 0) + 1
            if reached == counts.connected:
                counts.complete[found.revision] = time.monotonic()
                if len(counts.complete) > REMEMBERED:
                    del counts.complete[next(iter(counts.complete))]

    async def _end(self, attempt: int, opened: float) -> int:
        connection, self.connection = self.connection, None
        if self._has_map:
            self._has_map = False
            self._counts.connected -= 1
        if connection is None:
            return attempt
        self._counts.closed[connection.socket.close_code or 0] += 1
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await connection.close()
        return 0 if time.monotonic() - opened > SETTLED_S else attempt


def agents_of(port: int, fingerprint: bytes, credentials: Iterable[str], counts: Counts) -> list[SimulatedAgent]:
    """Return the agents of the members that have these credentials, for the coordinator at this port of loopback."""
    coordinator = Coordinator((Endpoint("127.0.0.1", port),), fingerprint)
    return [
        SimulatedAgent(
            replace(coordinator, credential=credential, instance=f"i{number}"),
            counts,
            Hello(versions=VersionsForm("0.1.0", "", "3.11.7"), endpoints=(f"192.0.2.{number % 250 + 1}:51888",)),
        )
        for number, credential in enumerate(credentials)
    ]


async def run(given: Mapping[str, object]) -> None:
    """Run the agents of these members until the input ends."""
    credentials = given["credentials"]
    assert isinstance(credentials, list)
    counts, tasks = Counts(), Tasks()
    agents = agents_of(int(str(given["port"])), bytes.fromhex(str(given["pin"])), credentials, counts)
    for number, agent in enumerate(agents):
        tasks.start(agent.run(), f"agent {number}")
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def report() -> None:
        while True:
            print(json.dumps(counts.report()), flush=True)
            await asyncio.sleep(REPORT_S)

    tasks.start(report(), "report")
    while line := await lines.readline():
        # The order: so many agents lose their connection, as after a network outage.
        for agent in agents[: int(line)]:
            if agent.connection is not None:
                tasks.start(agent.connection.close_socket(), "outage")
    await tasks.close()


def main() -> None:
    """Run the program; see the module's docstring."""
    # Unbuffered: the following lines are read by the event loop.
    with open(sys.stdin.fileno(), "rb", 0, closefd=False) as first:
        given = json.loads(first.readline())
    asyncio.run(run(given))


if __name__ == "__main__":
    main()
