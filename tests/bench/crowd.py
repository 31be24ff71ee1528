"""Many machines that enrol at once, each over its own connections, from a few processes.

    TOKEN=meshray1_… python -m tests.bench.crowd --processes 4 --each 25

It sends the requests of `meshray join` to the coordinator, with the same code, and does nothing else. It prints one
line of JSON: for each machine its name, its address and the seconds from the common start, or its error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.synchronize
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

# This precedes the start, as all of a client's own work should: the coordinator is measured.
import aiohttp  # noqa: F401

from meshray import __version__
from meshray.client.coordinator import enrol
from meshray.errors import MeshrayError
from meshray.model.address import NodeName
from meshray.model.enrol import EnrolAnswer, EnrolRequest
from meshray.model.keys import PrivateKey
from meshray.model.node import Versions
from meshray.model.token import Token

#: The time until all processes are ready to start, and until all have answered, seconds.
PATIENCE_S = 60.0
Row = Mapping[str, object]


@dataclass(frozen=True)
class Machine:
    """A machine that joins, without Ray."""

    name: NodeName
    key: PrivateKey
    request: EnrolRequest

    @classmethod
    def named(cls, name: str, token: Token) -> Machine:
        """Return a machine with a new key."""
        key, node_name = PrivateKey.generate(), NodeName(name)
        request = EnrolRequest(
            mesh_id=token.mesh_id,
            token_id=token.token_id,
            secret=token.secret,
            name=node_name,
            name_is_exact=True,
            public_key=key.public(),
            versions=Versions(__version__),
            with_ray=False,
            short_map=True,
        )
        return cls(node_name, key, request)

    async def enrol(self, token: Token) -> EnrolAnswer:
        """Enrol; raises as `meshray.client.coordinator.enrol` does."""
        answer, _ = await enrol(token, self.request, self.key)
        return answer


async def enrol_all(machines: list[Machine], token: Token, start: float) -> list[Row]:
    """Enrol all at once; return one row for each."""

    async def one(machine: Machine) -> Row:
        try:
            answer = await machine.enrol(token)
        except (MeshrayError, OSError) as error:
            return {"name": machine.name, "error": str(error), "seconds": time.monotonic() - start}
        ip = str(answer.map.nodes[answer.node_id].ip)
        return {"name": machine.name, "ip": ip, "seconds": time.monotonic() - start}

    return list(await asyncio.gather(*map(one, machines)))


def one_process(
    number: int,
    count: int,
    together: multiprocessing.synchronize.Barrier,
    rows: multiprocessing.Queue[list[Row]],
) -> None:
    """Enrol this process's share when all processes are ready."""
    token = Token.parse(os.environ["TOKEN"])
    machines = [Machine.named(f"crowd-{number}-{place}", token) for place in range(count)]
    together.wait(PATIENCE_S)
    rows.put(asyncio.run(enrol_all(machines, token, time.monotonic())))


def main() -> None:
    """Run the program; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--each", type=int, required=True)
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    together, queue = context.Barrier(options.processes), context.Queue()
    children = [
        context.Process(target=one_process, args=(number, options.each, together, queue), daemon=True)
        for number in range(options.processes)
    ]
    for child in children:
        child.start()
    rows = [row for _ in children for row in queue.get(timeout=PATIENCE_S)]
    print(json.dumps(rows), flush=True)
    for child in children:
        child.join(PATIENCE_S)


if __name__ == "__main__":
    main()
