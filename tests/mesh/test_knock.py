"""Whether a hub is reached from outside: the real coordinator knocks at real ports of the loopback."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from meshray.agent.client import Coordinator
from meshray.cli.app import App
from meshray.cli.hub_check import require_reachable
from meshray.errors import MeshrayError, RefusedError
from meshray.model.address import Endpoint
from meshray.runtime.knock import Listener
from meshray.runtime.ports import free_udp_port

from .coordinator_harness import Running, enrol_request, running_mesh

WORD = "0" * 32


async def node_at(mesh: Running, *endpoints: str) -> Coordinator:
    request = {**enrol_request(mesh.token), "endpoints": list(endpoints)}
    reply = await mesh.client.call("POST", "/v1/enroll", request)
    assert reply.status == 200
    here = (Endpoint("127.0.0.1", mesh.client.port),)
    return Coordinator(here, mesh.token.fingerprint, str(reply.body["credential"]))


async def check(node: Coordinator, endpoints: list[Endpoint], port: int) -> str:
    """What a person is told; the check blocks, as a command may."""

    def ask(path: str, body: Mapping[str, object]) -> object:
        return asyncio.run(node.call("POST", path, body))

    app = App((), stderr=io.StringIO())
    await asyncio.to_thread(require_reachable, app, endpoints, port, ask)
    assert isinstance(app.stderr, io.StringIO)
    return app.stderr.getvalue()


async def test_a_port_that_is_open(tmp_path: Path) -> None:
    port = free_udp_port(51888)
    async with running_mesh(tmp_path) as mesh:
        node = await node_at(mesh, f"127.0.0.1:{port}", f"localhost:{port}", "127.0.0.1:9")
        assert await check(node, [Endpoint("127.0.0.1", port), Endpoint("localhost", port)], port) == ""
        assert "127.0.0.1:9 do not arrive" in await check(
            node, [Endpoint("127.0.0.1", port), Endpoint("127.0.0.1", 9)], port
        )


async def test_a_port_that_nobody_reaches(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        node = await node_at(mesh, "127.0.0.1:9")
        with pytest.raises(MeshrayError) as caught:
            await check(node, [Endpoint("127.0.0.1", 9)], free_udp_port(51888))
        assert caught.value.code == "hub_unreachable"
        assert caught.value.hint


async def test_nobody_makes_the_coordinator_send_to_others(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        node = await node_at(mesh, "127.0.0.1:9", "no-such-host.invalid:9")
        with pytest.raises(RefusedError) as refused:
            await node.call("POST", "/v1/reach", {"endpoint": "127.0.0.1:53", "word": WORD})
        assert refused.value.code == "not_your_endpoint"
        with pytest.raises(MeshrayError) as unusable:
            await node.call("POST", "/v1/reach", {"endpoint": "no-such-host.invalid:9", "word": WORD})
        assert unusable.value.code == "endpoint_unusable"
        with pytest.raises(MeshrayError) as bad:
            await node.call("POST", "/v1/reach", {"endpoint": "127.0.0.1:9", "word": "hello"})
        assert bad.value.code == "bad_message"
        stranger = Coordinator(node.endpoints, node.fingerprint, "nobody")
        with pytest.raises(RefusedError):
            await stranger.call("POST", "/v1/reach", {"endpoint": "127.0.0.1:9", "word": WORD})
        asked = {"endpoint": "127.0.0.1:9", "word": WORD}
        outcomes = await asyncio.gather(
            *(node.call("POST", "/v1/reach", asked) for _ in range(3)), return_exceptions=True
        )
        assert sorted(error.code for error in outcomes if isinstance(error, MeshrayError)) == ["busy", "busy"]


def test_another_packet_is_no_knock() -> None:
    port = free_udp_port(51888)
    with Listener(port) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"meshray knock " + WORD.encode(), ("127.0.0.1", port))
        assert not listener.heard(0.2)
        sender.sendto(b"meshray knock " + listener.word.encode(), ("127.0.0.1", port))
        assert listener.heard(2)
