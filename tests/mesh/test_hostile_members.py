"""One member's reports never prevent another node's device from following the map."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from meshray.errors import MeshrayError
from meshray.protocol.connection import Hello

from .mesh import Member, Mesh, running_mesh, until

#: Longer than anything that the test waits for.
SLOW_S = 8.0
#: `meshray node rm` removes a key from every device within this, seconds.
REMOVED_S = 2.0


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let names of slow.example take a while and then fail. The list has the names that were looked up."""
    requests: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        if str(host).endswith("slow.example"):
            requests.append(str(host))
            time.sleep(SLOW_S)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return requests


async def claim(liar: Member, *endpoints: str) -> None:
    """Let the member report these endpoints as its own."""
    await liar.agent.connection.send(Hello(endpoints=endpoints))


async def remove(mesh: Mesh, name: str) -> float:
    """Remove the member; return the seconds until its key was removed from the hub's device."""
    key, hub = mesh.members[name].agent.state.me.public_key, mesh.head.device
    since = time.monotonic()
    try:
        await mesh.head.agent.state.coordinator.call("DELETE", f"/v1/nodes/{name}")
    except MeshrayError as error:
        pytest.fail(f"{name} was not removed: {error}")
    await until(lambda: hub.state is not None and key not in hub.state.peers, f"{name} is out of the hub's device")
    return time.monotonic() - since


async def test_names_that_do_not_resolve_keep_no_removed_key_in_a_hubs_device(
    tmp_path: Path, slow_names: list[str]
) -> None:
    async with running_mesh(tmp_path) as mesh:
        liar, _ = await mesh.join("liar"), await mesh.join("victim")
        await until(lambda: liar.agent.connection.is_open, "the liar is connected")
        await claim(liar, *(f"n{number}.slow.example:1" for number in range(8)))
        # The hub gets no answer from it, so it dials.
        await until(lambda: bool(slow_names), "a name is looked up")
        assert await remove(mesh, "victim") < REMOVED_S


async def test_a_name_is_dialled_once_it_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        return real("192.0.2.7" if host == "vm.example.org" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with running_mesh(tmp_path) as mesh:
        node = await mesh.join("node")
        await until(lambda: node.agent.connection.is_open, "the node is connected")
        hub, key = mesh.head.device, node.agent.state.me.public_key
        await claim(node, "vm.example.org:51888")

        def dialled() -> bool:
            peer = hub.state.peers.get(key) if hub.state is not None else None
            return peer is not None and str(peer.config.endpoint) == "192.0.2.7:51888"

        await until(dialled, "the hub dials the address behind the name")
