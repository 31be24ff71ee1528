"""The relay's two ends, each in its own host: the coordinator's server, and the client that an agent runs.

    python -m tests.bench.relay_ends server FOLDER 203.0.113.10:51888      prints what the client needs, as JSON
    python -m tests.bench.relay_ends client FILE                           that JSON in a file; prints 127.0.0.1:PORT

Both run until their host ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from meshray import __version__
from meshray.agent.backoff import backoff_s
from meshray.client.coordinator import Coordinator
from meshray.coordinator.mesh_creation import create_mesh
from meshray.coordinator.server import Server
from meshray.home import Home
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.keys import PrivateKey
from meshray.model.node import Versions
from meshray.relay.client import RelayClient


async def serve(folder: Path, where: Endpoint) -> None:
    """Run a coordinator whose relay leads to the WireGuard on the same port."""
    home = Home(folder / "state", folder / "run")
    answer, token = create_mesh(
        home,
        mesh_name="bench",
        network=OverlayNetwork.parse("10.99.0.0/16"),
        node_name=NodeName("head"),
        public_key=PrivateKey.generate().public(),
        port=where.port,
        endpoints=(where,),
        advertised=(where,),
        versions=Versions(__version__),
        labels={},
        now=time.time(),
    )
    server = Server(home)
    await server.start()
    output = {"endpoint": str(where), "fingerprint": token.fingerprint.hex(), "credential": answer.credential}
    print(json.dumps(output), flush=True)
    await server.run_until(asyncio.Event())


async def carry(answer: Mapping[str, str]) -> None:
    """Run the relay's client like an agent whose UDP is blocked."""
    hub = Endpoint.parse(answer["endpoint"])
    coordinator = Coordinator((hub,), bytes.fromhex(answer["fingerprint"]), answer["credential"])
    client = RelayClient(lambda: coordinator, lambda: hub, pause_s=backoff_s, tries_udp=False)
    print(await client.open(), flush=True)
    await client.run()


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(serve(Path(sys.argv[2]), Endpoint.parse(sys.argv[3])))
    else:
        asyncio.run(carry(json.loads(Path(sys.argv[2]).read_text())))
