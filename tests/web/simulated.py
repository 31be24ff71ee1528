"""A coordinator on loopback with simulated agents: `python -m tests.web.simulated FOLDER`.

It prints the address of the page, and then answers each line of its input with one: ``pass`` with the address that
opens the page with a new pass; ``hub`` or ``direct`` with the id of the line on the map, after the path gpu-1 - laptop
has become of this kind.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from meshray.model.enrol import EnrolAnswer
from meshray.model.path import PathKind, Transport
from meshray.model.problem import Problem
from meshray.model.token import Token
from meshray.protocol.codec import encode, to_json
from meshray.protocol.connection import Answer, Ask, PathReport, ReportedPath, read_coordinator
from meshray.protocol.status import NodeStatus, RayStatus, Status, Totals
from tests.mesh.coordinator_harness import Agent, Running, running_mesh
from tests.mesh.page_client import invite

SITES = {"head": "berlin", "gpu-1": "berlin", "gpu-2": "paris", "laptop": ""}
GIB = float(2**30)


class Nodes:
    """The simulated agents, by the names of their nodes."""

    def __init__(self, mesh: Running) -> None:
        self._mesh = mesh
        self.ids: dict[str, str] = {}
        self._agents: dict[str, Agent] = {}
        self._kind = PathKind.DIRECT

    async def start(self) -> None:
        await self._add("head", self._mesh.head)
        made = await self._mesh.admin("POST", "/v1/tokens", {"uses": 0})
        for name in list(SITES)[1:]:
            await self._add(name, await self._mesh.client.enrol(Token.parse(str(made.body["token"])), name))
        await self.report()

    async def change(self, kind: PathKind) -> str:
        """Report this kind of path; return the id of its line on the map."""
        self._kind = kind
        await self.report()
        return "e-" + "-".join(sorted((self.ids["gpu-1"], self.ids["laptop"])))

    async def report(self) -> None:
        for number, name in enumerate(SITES):
            paths = {self.ids[other]: self._path(name, other) for other in SITES if other != name}
            report = PathReport(SITES[name], time.time() - 86400, (8000,), number << 20, number << 18, paths)
            await self._agents[name].socket.send_str(encode(report))

    def _path(self, one: str, other: str) -> ReportedPath:
        pair = {one, other}
        if pair == {"gpu-1", "laptop"} and self._kind is PathKind.HUB:
            return ReportedPath(PathKind.HUB, Transport.UDP, 61.0, 0.0, 1380, "both NATs are symmetric")
        if pair == {"gpu-2", "laptop"}:
            return ReportedPath(PathKind.HUB, Transport.WSS, 70.0, 0.12, 1280, "UDP is blocked at laptop")
        return ReportedPath(PathKind.DIRECT, Transport.UDP, 12.5, 0.0, 1420)

    async def _add(self, name: str, answer: EnrolAnswer) -> None:
        self.ids[name] = answer.node_id
        agent = self._agents[name] = await self._mesh.client.agent(answer.credential)
        self._reading = asyncio.get_running_loop().create_task(self._read(agent))

    async def _read(self, agent: Agent) -> None:
        async for message in agent.socket:
            question = read_coordinator(message.data)
            if isinstance(question, Ask):
                await agent.socket.send_str(encode(Answer(question.id, to_json(self._status()))))

    def _status(self) -> Status:
        resources = {"CPU": 16.0, "GPU": 1.0, "memory": 64 * GIB, "object_store_memory": 18 * GIB}
        ray = RayStatus(alive=True, resources=resources, used={"CPU": 4.0, "GPU": 1.0, "memory": 9 * GIB})
        entries = tuple(
            NodeStatus(
                name, f"10.99.0.{place}", "head" if name == "head" else "worker", ray=ray, since=time.time() - 7200
            )
            for place, name in enumerate(SITES, start=1)
        )
        text = "gpu-2 loses 12 % of its packets to laptop"
        problem = Problem("path_loss", text, "laptop", "meshray doctor laptop")
        return Status("lab", 1, "head", nodes=entries, totals=Totals(64.0, 4.0, 256 * GIB, 72 * GIB), health=(problem,))


async def main(folder: Path) -> None:
    """Run until the input ends."""
    async with running_mesh(folder) as mesh:
        nodes = Nodes(mesh)
        await nodes.start()
        url = f"https://127.0.0.1:{mesh.client.port}"
        print(url, flush=True)
        number = 0
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if line == "pass":
                number += 1
                secret = await invite(mesh, f"user-{number}", "admin")
                print(f"{url}/enter#{secret}.{mesh.token.fingerprint.hex()}", flush=True)
            else:
                print(await nodes.change(PathKind(line)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
