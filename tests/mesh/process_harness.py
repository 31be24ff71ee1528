"""The coordinator as a separate process, with members that were in its database beforehand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from meshray.coordinator.records import Member, RowChange
from meshray.coordinator.store import open_store
from meshray.home import Home
from meshray.model.address import NodeName
from meshray.model.keys import PrivateKey
from meshray.model.node import WORKER, Node
from meshray.model.token import hash_secret, new_secret

from .coordinator_harness import PATIENCE_S, VERSIONS

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class CoordinatorProcess:
    """The coordinator's process and its TCP port."""

    process: asyncio.subprocess.Process
    port: int

    def cpu_s(self) -> float:
        """Return the CPU time that it has used, seconds."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _TICKS

    def resident_bytes(self) -> int:
        """Return its resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024

    async def kill(self) -> None:
        """End it without warning."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@contextlib.asynccontextmanager
async def coordinator_process(home: Home, log: Path, port: int = 0) -> AsyncIterator[CoordinatorProcess]:
    """Run the coordinator of this home on a loopback port, and kill it at the end if it still runs."""
    environment = {**os.environ, "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)}
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshray.coordinator", "--port", str(port), "--listen", "127.0.0.1"),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield CoordinatorProcess(process, await _port_of(process, log))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _port_of(process: asyncio.subprocess.Process, log: Path) -> int:
    for _ in range(int(PATIENCE_S * 50)):
        written = await asyncio.to_thread(log.read_text)
        found = re.search(r"listening on port (\d+)", written)
        if found:
            return int(found.group(1))
        assert process.returncode is None, written
        await asyncio.sleep(0.02)
    raise AssertionError(f"no port in {log}")


def add_members(home: Home, count: int) -> list[str]:
    """Write so many members into the database of a mesh; return their credentials."""
    store = open_store(home)
    try:
        registry, rows, credentials = store.load(), list[RowChange](), list[str]()
        addresses = registry.mesh.network.node_addresses()
        taken = {member.node.ip for member in registry.members.values()}
        for number in range(count):
            ip = next(address for address in addresses if address not in taken)
            key = PrivateKey.generate().public()
            node = Node(secrets.token_hex(8), NodeName(f"w{number}"), ip, key, frozenset({WORKER}), versions=VERSIONS)
            credentials.append(new_secret())
            member = Member(node, hash_secret(credentials[-1]), "", (), time.time(), had_map=True, follows_epochs=True)
            registry, more, _ = registry.put(member)
            rows += more
        store.apply(rows)
        return credentials
    finally:
        store.close()
