"""Whether a hub is reachable from outside: the real coordinator sends to real ports on loopback."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from meshray.cli.app import App
from meshray.cli.hub_check import require_reachable
from meshray.client.coordinator import Coordinator
from meshray.coordinator import endpoint_probes
from meshray.errors import MeshrayError, RefusedError
from meshray.linux.addresses import interface_addresses
from meshray.linux.ports import free_udp_port
from meshray.linux.reachability import Listener
from meshray.model.address import Endpoint
from meshray.model.endpoints import MAX_ENDPOINTS

from .coordinator_harness import Running, enrol_request, running_mesh

WORD = "0" * 32


@pytest.fixture
def knocks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow the nodes of these tests to be on the coordinator's own machine."""
    monkeypatch.setattr(endpoint_probes, "other_machine", lambda ip, network: ip)


async def node_at(mesh: Running, *endpoints: str) -> Coordinator:
    request = {**enrol_request(mesh.token), "endpoints": list(endpoints)}
    reply = await mesh.client.call("POST", "/v1/enroll", request)
    assert reply.status == 200
    here = (Endpoint("127.0.0.1", mesh.client.port),)
    return Coordinator(here, mesh.token.fingerprint, str(reply.body["credential"]))


async def check(node: Coordinator, endpoints: list[Endpoint], port: int) -> str:
    """Return the messages for the user; the check blocks, as a command may."""

    def ask(path: str, body: Mapping[str, object]) -> object:
        return asyncio.run(node.call("POST", path, body))

    app = App((), stderr=io.StringIO())
    await asyncio.to_thread(require_reachable, app, endpoints, port, ask)
    assert isinstance(app.stderr, io.StringIO)
    return app.stderr.getvalue()


@pytest.mark.usefixtures("knocks_here")
async def test_a_port_that_is_open(tmp_path: Path) -> None:
    port = free_udp_port(51888)
    async with running_mesh(tmp_path) as mesh:
        node = await node_at(mesh, f"127.0.0.1:{port}", f"localhost:{port}", "127.0.0.1:9")
        assert await check(node, [Endpoint("127.0.0.1", port), Endpoint("localhost", port)], port) == ""
        assert "127.0.0.1:9 do not arrive" in await check(
            node, [Endpoint("127.0.0.1", port), Endpoint("127.0.0.1", 9)], port
        )


@pytest.mark.usefixtures("knocks_here")
async def test_an_unreachable_port_is_reported(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        node = await node_at(mesh, "127.0.0.1:9")
        with pytest.raises(MeshrayError) as caught:
            await check(node, [Endpoint("127.0.0.1", 9)], free_udp_port(51888))
        assert caught.value.code == "hub_unreachable"
        assert caught.value.hint


@pytest.mark.usefixtures("knocks_here")
async def test_a_client_cannot_make_the_coordinator_send_to_others(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        node = await node_at(mesh, "127.0.0.1:9")
        with pytest.raises(RefusedError) as refused:
            await node.call("POST", "/v1/reach", {"endpoint": "127.0.0.1:53", "word": WORD})
        assert refused.value.code == "not_your_endpoint"
        with pytest.raises(MeshrayError) as bad:
            await node.call("POST", "/v1/reach", {"endpoint": "127.0.0.1:9", "word": "hello"})
        assert bad.value.code == "bad_message"
        outsider = Coordinator(node.endpoints, node.fingerprint, "nobody")
        with pytest.raises(RefusedError):
            await outsider.call("POST", "/v1/reach", {"endpoint": "127.0.0.1:9", "word": WORD})
        asked = {"endpoint": "127.0.0.1:9", "word": WORD}
        outcomes = await asyncio.gather(
            *(node.call("POST", "/v1/reach", asked) for _ in range(3)), return_exceptions=True
        )
        assert sorted(error.code for error in outcomes if isinstance(error, MeshrayError)) == ["busy", "busy"]


SPECIAL = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.169.254", "224.0.0.1", "239.255.255.250", "255.255.255.255",
    "10.99.0.1", "10.99.128.9", "[::1]", "[::]", "[ff02::1]", "[fe80::1]", "[fe80::1%lo]", "[::ffff:127.0.0.1]",
    "[::ffff:169.254.169.254]", "[64:ff9b::169.254.169.254]", "[2002:7f00:1::]",
]  # fmt: skip


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the destinations of the coordinator's packets."""
    found: list[str] = []

    async def send_probes(ip: object, port: int, token: str) -> None:
        found.append(f"{ip} {port}")

    monkeypatch.setattr(endpoint_probes, "send_probes", send_probes)
    return found


async def test_packets_go_only_to_addresses_of_other_machines(tmp_path: Path, sent: list[str]) -> None:
    own = await asyncio.to_thread(own_addresses)
    endpoints = [f"{host}:53" for host in (*SPECIAL, *own)]
    async with running_mesh(tmp_path) as mesh:
        for start in range(0, len(endpoints), MAX_ENDPOINTS):
            part = endpoints[start : start + MAX_ENDPOINTS]
            node = await node_at(mesh, *part)
            for endpoint in part:
                with pytest.raises(MeshrayError) as caught:
                    await node.call("POST", "/v1/reach", {"endpoint": endpoint, "word": WORD})
                assert caught.value.code == "endpoint_unusable", endpoint
    assert sent == []


async def test_a_name_does_not_reveal_its_addresses(
    tmp_path: Path, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the resolver says, however slowly: the same answer, as soon."""
    real, slow = socket.getaddrinfo, threading.Event()
    answers = {"public.example": "8.8.8.8", "inside.example": "127.0.0.1", "metadata.example": "169.254.169.254"}

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        if host == "slow.example":
            slow.wait(20)
        if str(host).endswith(".example") and host not in answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return real(answers.get(host, host), *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    names = [*answers, "none.example", "slow.example"]
    times = {}
    try:
        async with running_mesh(tmp_path) as mesh:
            node = await node_at(mesh, *(f"{name}:53" for name in names))
            for name in names:
                since = time.monotonic()
                answer = await node.call("POST", "/v1/reach", {"endpoint": f"{name}:53", "word": WORD})
                times[name] = time.monotonic() - since
                assert set(answer) == {"schema"}
    finally:
        slow.set()
    assert max(times.values()) - min(times.values()) < 0.3, times
    assert sent == ["8.8.8.8 53"]


def own_addresses() -> list[str]:
    return [str(ip) for ip in interface_addresses() if ip.version == 4]


def test_other_packets_do_not_count_as_reachability_probes() -> None:
    port = free_udp_port(51888)
    with Listener(port) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"meshray knock " + WORD.encode(), ("127.0.0.1", port))
        assert not listener.wait(0.2)
        sender.sendto(b"meshray knock " + listener.token.encode(), ("127.0.0.1", port))
        assert listener.wait(2)
