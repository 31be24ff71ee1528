"""The events in a mesh that make it emit everything that it can: see `tests.mesh.emitted`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from meshray.agent.paths.decision import HUB
from meshray.client.agent import ControlClient
from meshray.client.coordinator import Coordinator, withdraw
from meshray.client.order import give_order
from meshray.errors import RefusedError
from meshray.home import Home
from meshray.model.node import HUB_FORWARDS, ONE_IDENTITY
from meshray.model.token import Token
from meshray.node.enrolment import load_private_key
from meshray.protocol.control import Repair
from meshray.protocol.orders import OrderForm

from .emitted import DEADLINE_S, Machines, Node, Recorder, until
from .test_restore import backup, put_back


async def record(folder: Path) -> Recorder:
    """Return everything that was emitted during all these events."""
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder()
        recorder.install(patch)
        patch.setattr("meshray.agent.connection.coordinator_connection._TAKEN_OVER_FIRST_S", 0.2)
        patch.setattr("meshray.agent.connection.coordinator_connection._TAKEN_OVER_S", 0.5)
        patch.setattr("meshray.coordinator.takeovers.QUIET_S", 1.0)
        for name, happen in (("a", _mesh_with_lock), ("b", _hub_only), ("c", _external)):
            (folder / name).mkdir()
            if name == "c":  # A small mesh sends its map as a large one does.
                patch.setattr("meshray.coordinator.map_messages.PACKED_FROM_BYTES", 0)
            async with machines(folder / name, recorder, patch) as mesh:
                await happen(mesh)
    return recorder


@contextlib.asynccontextmanager
async def machines(folder: Path, recorder: Recorder, patch: pytest.MonkeyPatch) -> AsyncIterator[Machines]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Processes of tests beside this one have other networks.
    network = IPv4Network(f"127.{100 + os.getpid() % 100}.0.0/16")
    mesh = Machines(folder, port, network, recorder, asyncio.get_running_loop())
    mesh.install(patch)
    hands = asyncio.get_running_loop().create_task(mesh.shake_hands())
    try:
        yield mesh
    finally:
        hands.cancel()
        await mesh.close()


async def _mesh_with_lock(mesh: Machines) -> None:
    lock = str(mesh.folder / "mesh.lock")
    where = ("--port", str(mesh.port), "--advertise", "127.0.0.1")
    made = await mesh.type(
        "head", "init", "--no-ray", "--name", "head", "--network", str(mesh.network), "--lock", lock, *where
    )
    token = str(made["token"])
    await mesh.type("gpu-1", "join", token, "--no-ray", "--name", "gpu-1", "--label", "zone=lab")
    await mesh.type("gpu-2", "join", token, "--no-ray", "--name", "gpu-2", "--endpoint", "192.0.2.99:4000")
    await mesh.type("gpu-5", "join", token, "--no-ray", "--name", "gpu-5", "--no-remote")
    one, two = mesh.nodes["gpu-1"], mesh.nodes["gpu-2"]
    await until(lambda: all(is_direct(node, other) for node, other in ((one, two), (two, one))), "a direct path")

    await mesh.type("head", "init", "--no-ray", "--advertise", "127.0.0.2")
    await mesh.type("gpu-1", "join", token, "--no-ray")
    await mesh.type("gpu-1", "up", "--coordinator", f"127.0.0.1:{mesh.port}")
    await look(mesh)
    await administer(mesh, lock)
    await call_the_rest(mesh, Token.parse(token))
    await lose_paths(mesh)
    await clone(mesh, "gpu-2")
    await restore(mesh, token)
    await mesh.type("gpu-1", "down")
    await mesh.type("gpu-1", "up")
    await mesh.type("head", "node", "rm", "gpu-3", "--yes")
    await mesh.type("head", "node", "rm", "gpu-2", "--yes", "--lock", lock)
    await forget_removals(mesh)
    await mesh.type("head", "node", "list")
    await mesh.type("gpu-4", "join", token, "--no-ray", "--name", "gpu-4")
    await mesh.type("gpu-1", "leave", "--yes")


def is_direct(node: Node, other: Node) -> bool:
    pairs, found = node.agent.paths.pairs, node.agent.state.map.nodes.get(other.agent.state.enrolment.node_id)
    return pairs is not None and found is not None and pairs.path(found).carries


async def look(mesh: Machines) -> None:
    """Run all commands that change nothing."""
    await mesh.type("head", "status")
    await mesh.type("gpu-1", "status")
    await mesh.type("head", "doctor", "--bundle", str(mesh.folder / "report.tar.gz"))
    await mesh.type("gpu-1", "ready")
    await mesh.type("gpu-1", "ping", "gpu-2", "--count", "1")
    await mesh.type("gpu-1", "ping", "nobody", fails=True)
    for words in (("dashboard",), ("env",), ("completion", "bash"), ("render", "systemd"), ("render", "slurm")):
        await mesh.type("gpu-1", *words)
    for kind in ("prometheus", "alerts", "grafana", "kubernetes", "kuberay"):
        await mesh.type("gpu-1", "render", kind)
    await mesh.type("gpu-1", "render", "ansible")
    await mesh.type("gpu-1", "render", "cloud-init", "--role", "head")
    await mesh.type("gpu-1", "render", "wireguard", "gpu-1")
    await mesh.type("gpu-1", "render", "wireguard", "gpu-1", "--secrets")
    home = mesh.home("gpu-1")
    home.logs.mkdir(exist_ok=True)
    (home.logs / "agent.log").write_text("what happened\n")
    await mesh.type("gpu-1", "logs")
    await asyncio.to_thread(ControlClient(home.control_socket).request, Repair("device"))


async def administer(mesh: Machines, lock: str) -> None:
    """Run an admin's commands on the head."""
    made = await mesh.type("head", "token", "create", "--lock", lock, "--line")
    await mesh.type("head", "token", "create", "--lock", lock, "--name", "gpu-9", "--uses", "1")
    await mesh.type("head", "token", "list")
    await mesh.type("head", "token", "revoke", str(made["id"]))
    invited = await mesh.type("head", "web", "invite", "ana", "--admin", "--host", "127.0.0.1")
    await mesh.type("head", "web", "list")
    invitation = mesh.folder / "invitation"
    invitation.write_text(str(invited["url"]))
    await mesh.type("laptop", "node", "logs", "gpu-1", "--pass", f"@{invitation}")
    await mesh.type("head", "web", "revoke", "ana")
    await mesh.type("laptop", "node", "logs", "gpu-1", fails=True)
    await mesh.type("gpu-1", "web", "open", "--no-open")
    await give_orders(mesh, lock)
    await mesh.type("head", "audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meshray.cli.commands.backup.passphrase", lambda app, *, confirm: "five random words")
        await mesh.type("head", "backup", str(mesh.folder / "lab.backup"))
    await mesh.type("head", "node", "list")
    await mesh.type("head", "node", "rename", "gpu-1", "gpu-7")
    await mesh.type("head", "node", "rename", "gpu-7", "gpu-1")
    head = mesh.nodes["head"].agent
    await until(lambda: head.state.map.find("gpu-1") is not None, "the head knows the node by its name again")
    await mesh.type("head", "node", "rotate-key", "gpu-1")
    await mesh.type("head", "secrets", "rotate")
    await mesh.type("head", "peer", "add", "phone", "--config", str(mesh.folder / "phone.conf"), "--lock", lock)
    requirements = mesh.folder / "requirements.txt"
    requirements.write_text("numpy==2.1.0\n")
    await mesh.type("head", "env", "lock", "--from", str(requirements))


async def give_orders(mesh: Machines, lock: str) -> None:
    """Give every order to a node, among them one that fails and one that is cancelled."""
    await mesh.type("head", "node", "logs", "gpu-1")
    await mesh.type("head", "node", "logs", "gpu-1", "ray", fails=True)
    # All agents run in this process, so this node runs the head's meshray already.
    await mesh.type("head", "node", "upgrade", "gpu-1", "--lock", lock)
    two, restarted = mesh.nodes["gpu-2"].agent, asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:

        async def create(home: Home, path: Path) -> None:
            await asyncio.to_thread(path.write_text, "an archive")

        patch.setattr("meshray.agent.remote_orders.create_bundle", create)
        await mesh.type("head", "node", "bundle", "gpu-1", str(mesh.folder / "gpu-1.tar.gz"))
        # The process of this test must continue.
        patch.setattr(two._restarting, "set", restarted.set)
        await mesh.type("head", "node", "restart", "gpu-2")
        await asyncio.wait_for(restarted.wait(), DEADLINE_S)
    following = give_order(mesh.nodes["head"].agent.state.coordinator, OrderForm("gpu-1", "logs", {"follow": True}))
    await anext(following)
    await following.aclose()
    emitted = mesh.recorder.values
    await until(lambda: bool(emitted["coordinator cancel_order"]), "the order is cancelled")


async def call_the_rest(mesh: Machines, token: Token) -> None:
    """Call the operations of the coordinator that no command above calls."""
    agent = mesh.nodes["gpu-2"].agent
    await agent.state.coordinator.call("GET", "/v1/openapi.json")
    await mesh.nodes["head"].agent.state.coordinator.call("GET", "/v1/metrics")
    with pytest.raises(RefusedError):
        await agent.state.coordinator.call("GET", "/v1/tokens")
    await withdraw(token, load_private_key(agent.state.home))
    await agent.state.coordinator.call("POST", "/v1/reach", {"endpoint": "192.0.2.99:4000", "word": "0" * 32})


async def environments(coordinator: Coordinator, token: Token) -> None:
    """Request the head's environment: as a node, with a token, and after a change."""
    await coordinator.call("GET", "/v1/environment")
    shown = {"mesh_id": token.mesh_id, "token_id": token.token_id, "secret": token.secret}
    await Coordinator(token.coordinators, token.fingerprint, "").call("POST", "/v1/environment", shown)
    await coordinator.call("PUT", "/v1/environment", {"requirements": "numpy==2.1.0"})


async def lose_paths(mesh: Machines) -> None:
    """Let a direct path end, and let the head find a node silent."""
    head, one, two = (mesh.nodes[name] for name in ("head", "gpu-1", "gpu-2"))
    assert one.agent.paths.pairs is not None and head.agent.paths._silence is not None
    other = one.agent.state.map.nodes[two.agent.state.enrolment.node_id]
    one.agent.paths.pairs._set(other, replace(one.agent.paths.pairs.path(other), phase=HUB))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head.agent.paths._silence, "verdicts", lambda: {other.id: "silent"})
        emitted = mesh.recorder.values
        await until(lambda: bool(emitted["agent silence"] and emitted["coordinator left"]), "what was lost is told")


async def clone(mesh: Machines, name: str) -> None:
    """Let two machines use one identity, until the copy gives it up."""
    copy = mesh.home(f"{name}-copy")
    shutil.copytree(mesh.home(name).state, copy.state, ignore=shutil.ignore_patterns("run"))
    original = mesh.nodes[name]
    original.agent.parts.prober.close()  # type: ignore[union-attr] # the addresses are the copy's as well
    await mesh.start(copy)
    agent = mesh.nodes[f"{name}-copy"].agent

    def knows() -> bool:
        return ONE_IDENTITY in [problem.code for problem in agent.state.membership.complaints()]

    await until(knows, "the copy knows that it is one")
    await mesh.type(f"{name}-copy", "status")
    # The two would take the connection from each other for ever.
    original.task.cancel()
    await until(lambda: agent.connection.is_open, "the copy can say that it goes")
    await mesh.type(f"{name}-copy", "leave", "--local", "--yes")


async def restore(mesh: Machines, token: str) -> None:
    """Restore the coordinator's database from before a node enrolled."""
    home: Home = mesh.home("head")
    assert mesh.server is not None
    head = mesh.nodes["head"].agent
    await mesh.server.service.faults.reported(head.state.me.id, {HUB_FORWARDS: "forwarding cannot be switched on"})
    await mesh.type("head", "node", "list")
    backup(home, mesh.folder / "copy.db")
    await mesh.type("gpu-3", "join", token, "--no-ray", "--name", "gpu-3")
    await until(lambda: head.state.map.find("gpu-3") is not None, "the head knows the new node")
    await mesh.server.stop()
    put_back(home, mesh.folder / "copy.db")
    await mesh.start_server(home)
    await until(lambda: mesh.nodes["gpu-3"].agent.connection.is_open, "the node is known again")
    await until(lambda: bool(mesh.recorder.values["coordinator restored"]), "the head is told")
    await mesh.type("head", "node", "list")


async def forget_removals(mesh: Machines) -> None:
    """Let the coordinator lose the list of the lock's removals, which an agent has."""
    assert mesh.server is not None
    agent = mesh.nodes["head"].agent
    await until(lambda: agent.state.published_map.removals is not None, "the head has the list")
    await mesh.server.stop()
    with contextlib.closing(sqlite3.connect(mesh.home("head").database)) as database, database:
        database.execute("DELETE FROM setting WHERE name = 'removals'")
    await mesh.start_server(mesh.home("head"))
    service = mesh.server.service

    def is_back() -> bool:
        agent.state.wake()  # It compares its next report with the last one.
        return service.removals() is not None

    assert service.removals() is None
    await until(is_back, "the list is back")


async def _external(mesh: Machines) -> None:
    """Let a head and a worker join whose Ray another program would start."""
    where = ("--port", str(mesh.port), "--advertise", "127.0.0.1")
    ray = ("--ray", "external", "--ray-user", "0")
    made = await mesh.type("head", "init", *ray, "--name", "head", "--network", str(mesh.network), *where)
    await mesh.type("gpu-1", "join", *ray, "--name", "gpu-1", str(made["token"]))
    await mesh.type("gpu-1", "ready")
    await mesh.type("gpu-1", "down")
    await mesh.type("gpu-1", "up")


async def _hub_only(mesh: Machines) -> None:
    """Return a mesh whose head comes later; the ports of its Ray are already chosen."""
    where = ("--port", str(mesh.port), "--advertise", "127.0.0.1")
    await mesh.type(
        "hub", "init", "--hub-only", "--name", "hub", "--network", str(mesh.network), *where, "--", "--port=6380"
    )
    made = await mesh.type("hub", "token", "create")
    await mesh.type("gpu-1", "join", str(made["token"]), "--no-ray", "--name", "gpu-1")
    await environments(mesh.nodes["hub"].agent.state.coordinator, Token.parse(str(made["token"])))
