"""A node that knows its coordinator by name connects while no name server answers."""

from __future__ import annotations

import socket
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from meshray.coordinator.server import Server
from meshray.linux import dns
from meshray.model.address import Endpoint
from meshray.node.enrolment import Enrolment
from tests.mesh.mesh import running_mesh, until

NAME, ADDRESS = "head.example.org", "127.0.0.2"
#: The time until the node is connected: it waits 0.3 s for the name alone, on a machine that other tests share.
CONNECTED_S = 10.0


async def test_a_node_connects_to_the_address_that_the_name_had_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def look_up(host: str, family: int = socket.AF_UNSPEC) -> tuple[dns.Address, ...]:
        if answers:
            return (ip_address(ADDRESS),) if host == NAME else ()
        ended.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")

    answers = True
    monkeypatch.setattr(dns, "_look_up", look_up)
    async with running_mesh(tmp_path) as mesh:
        await mesh.join("gpu-1")
        await until(mesh.whole, "all see all")
        await mesh.members["gpu-1"].kill()
        # The map has another address, at which the coordinator does not answer.
        await mesh.server.stop()
        mesh.server = Server(mesh.server_home, port=mesh.port, hosts=(ADDRESS,))
        await mesh.server.start()
        named = Endpoint(NAME, mesh.port)
        worker = mesh.reborn("gpu-1", coordinators=(named,))  # type: ignore[arg-type]
        worker.start()
        await until(lambda: worker.agent.connection.outside == named, "connected by name")
        await until(lambda: str(Enrolment.load(worker.home).coordinators[0]) == str(named), "preferred")
        await worker.kill()

        answers = False
        worker, began = mesh.reborn("gpu-1"), time.monotonic()
        worker.start()
        await until(lambda: worker.agent.connection.is_open, "connected without a name server")
        took_s = time.monotonic() - began
        assert took_s < CONNECTED_S, took_s
        assert worker.agent.connection.outside == Endpoint(ADDRESS, mesh.port)
        # The name stays known: the address may be another one when a name server answers again.
        assert named in worker.agent.state.enrolment.coordinators
        await worker.kill()
        ended.set()
