"""A whole mesh in one process: the real coordinator, real agents, fake devices.

head ── coordinator (TCP on loopback, real TLS)
  ├── agent a    FakeDevice: a handshake happens whenever the other side has this peer as well
  └── agent b    …
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshray.agent.agent import Agent
from meshray.agent.dependencies import Dependencies
from meshray.agent.state import NodeState
from meshray.client.coordinator import enrol
from meshray.coordinator.mesh_creation import create_mesh
from meshray.coordinator.server import Server
from meshray.home import Home
from meshray.linux.clock import unix_s
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.attestation import Attestation, Chain, Grant
from meshray.model.enrol import EnrolAnswer, EnrolRequest
from meshray.model.keys import PrivateKey, SigningKey
from meshray.model.node import COORDINATOR, HEAD, HUB, Versions
from meshray.model.path import Mode
from meshray.model.token import Token
from meshray.node.enrolment import Enrolment, load_private_key, save_private_key
from meshray.node.identity import Identity
from meshray.node.map_cache import load_map, save_map
from tests.fake_device import FakeDevice

#: A wait ends as soon as its condition is met: this is for a machine whose cores are busy with other tests, seconds.
DEADLINE_S = 40.0
NETWORK = OverlayNetwork.parse("10.99.0.0/16")


@dataclass
class Member:
    """One node: its agent, its device, its state on disk."""

    home: Home
    agent: Agent
    device: FakeDevice
    task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.agent.run())

    async def down(self) -> None:
        self.agent.stop()
        await self.ended()

    async def ended(self) -> None:
        assert self.task is not None
        await asyncio.wait_for(self.task, DEADLINE_S)

    async def kill(self) -> None:
        """Leave what kill -9 leaves: nothing is stopped."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if self.agent.parts.prober is not None:
            self.agent.parts.prober.close()


@dataclass
class Mesh:
    """The coordinator and its members."""

    folder: Path
    server: Server
    token: Token
    port: int
    members: dict[str, Member] = field(default_factory=dict)
    background: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def head(self) -> Member:
        return next(iter(self.members.values()))

    async def join(
        self,
        name: str,
        *,
        ephemeral: bool = False,
        token: Token | None = None,
        machine: str = "",
        transport: Mode = "auto",
    ) -> Member:
        """Let a machine become the node of this name; ``machine`` names its folder, if that is not the node's name."""
        key, request_token = PrivateKey.generate(), token or self.token
        home = self.home(machine or name)
        identity = Identity.load_or_create(home, request_token.mesh_id)
        if request_token.endorser is not None:
            identity.set_chain(request_token.endorse)
        request = EnrolRequest(
            mesh_id=request_token.mesh_id,
            token_id=request_token.token_id,
            secret=request_token.secret,
            name=NodeName(name),
            name_is_exact=True,
            public_key=key.public(),
            versions=Versions("0.1.0"),
            with_ray=False,
            ephemeral=ephemeral,
            attestation=identity.sign(key.public()),
            short_map=True,
        )
        answer, endpoint = await enrol(request_token, request, key)
        return self.add(name, key, answer, endpoint, ephemeral=ephemeral, home=home, transport=transport)

    def home(self, name: str) -> Home:
        return Home(self.folder / name, self.folder / name / "run")

    def add(
        self,
        name: str,
        key: PrivateKey,
        answer: EnrolAnswer,
        endpoint: Endpoint,
        *,
        ephemeral: bool = False,
        home: Home | None = None,
        transport: Mode = "auto",
    ) -> Member:
        home = home or self.home(name)
        enrolment = Enrolment(
            mesh_id=answer.map.mesh.id,
            node_id=answer.node_id,
            name=name,
            credential=answer.credential,
            coordinators=(endpoint,),
            fingerprint=self.token.fingerprint.hex(),
            mesh_secret=answer.mesh_secret,
            ray_token=answer.ray_token,
            secret_epoch=answer.secret_epoch,
            mesh_port=self.port,
            listen_port=self.port,
            user_uid=0,
            with_ray=False,
            ephemeral=ephemeral,
            transport=transport,
            hosts_coordinator=not self.members,
            ticket=answer.ticket,
        )
        enrolment.save(home)
        save_private_key(home, key)
        save_map(home, answer.map)
        device = FakeDevice()
        member = Member(home, Agent(NodeState(home, enrolment, answer.map), key, Dependencies(device)), device)
        self.members[name] = member
        member.start()
        return member

    def reborn(self, name: str, **changes: str) -> Member:
        """Return the agent of a killed node, from the state on its disk; it is not started yet."""
        home = self.members[name].home
        enrolment = replace(Enrolment.load(home), **changes)  # type: ignore[arg-type]
        device = FakeDevice()
        agent = Agent(NodeState(home, enrolment, load_map(home)), load_private_key(home), Dependencies(device))
        self.members[name] = Member(home, agent, device)
        return self.members[name]

    async def restart_coordinator(self, pause_s: float = 0.0) -> None:
        await self.server.stop()
        await asyncio.sleep(pause_s)
        self.server = Server(self.server_home, port=self.port, hosts=("127.0.0.1",))
        await self.server.start()

    @property
    def server_home(self) -> Home:
        return self.head.home

    def shake_hands(self) -> None:
        """Simulate WireGuard: two devices that are peers with one preshared key perform handshakes."""
        by_key = {member.agent.state.me.public_key: member.device for member in self.members.values()}
        for key, device in by_key.items():
            for peer in list(device.state.peers) if device.state else []:
                other = by_key.get(peer)
                if (
                    other is not None
                    and device.state is not None
                    and other.state is not None
                    and key in other.state.peers
                ):
                    ours, theirs = device.state.peers[peer].config, other.state.peers[key].config
                    if ours.preshared_key != theirs.preshared_key:
                        continue
                    device.hear(peer, now=unix_s())

    def whole(self) -> bool:
        """Return whether every member sees every other one online, and the hub has exactly the others as peers."""
        self.shake_hands()
        names = set(self.members)
        for member in self.members.values():
            nodes = member.agent.state.map.nodes.values()
            if {str(node.name) for node in nodes} != names or not all(node.online for node in nodes):
                return False
            if not member.agent.progress.up or member.device.state is None:
                return False
        hub = self.head.device.state
        return hub is not None and len(hub.peers) == len(names) - 1


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_S:.0f} s: {what}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running_mesh(
    folder: Path, lock: SigningKey | None = None, network: OverlayNetwork = NETWORK
) -> AsyncIterator[Mesh]:
    """Run a mesh of its head alone, with this lock; everything ends with the block."""
    port = _free_port()
    home, key = Home(folder / "head", folder / "head" / "run"), PrivateKey.generate()
    here = Endpoint("127.0.0.1", port)

    def attest(mesh_id: str) -> Attestation:
        identity = Identity.load_or_create(home, mesh_id)
        if lock is not None:
            first = SigningKey.generate()
            grant = Grant.sign(lock, mesh_id, first.public(), (HEAD, HUB, COORDINATOR), 0)
            identity.set_chain(lambda public: Chain.sign(first, grant, mesh_id, public))
        return identity.sign(key.public())

    answer, token = create_mesh(
        home,
        mesh_name="lab",
        network=network,
        node_name=NodeName("head"),
        public_key=key.public(),
        port=port,
        endpoints=(here,),
        advertised=(here,),
        versions=Versions("0.1.0"),
        labels={},
        now=time.time(),
        lock=lock,
        attest=attest,
    )
    server = Server(home, port=port, hosts=("127.0.0.1",))
    await server.start()
    mesh = Mesh(folder, server, token, port)
    mesh.add("head", key, answer, here)
    try:
        yield mesh
    finally:
        for task in mesh.background:
            task.cancel()
        await asyncio.gather(*mesh.background, return_exceptions=True)
        for member in list(mesh.members.values()):
            await member.kill()
        await mesh.server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
