"""Many nodes in one process: enrolled, online, and from SIGUSR1 on with a WireGuard device each.

    TOKEN=meshray1_… python -m tests.bench.peers --count 50

It prints ``online`` when every node's connection to the coordinator is open, and ``answering`` when every node has its
own device, with a fresh handshake with the hub, answers probes on it, and sends the hub signs of life as an agent does.
It ends with SIGTERM or with its host.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from meshray import __version__
from meshray.agent.device.desired_device import PairKeys, desired_device
from meshray.agent.paths.prober import Prober
from meshray.agent.paths.silence_decision import BEAT_S, Rhythm
from meshray.client.coordinator import Connection, Coordinator
from meshray.home import Home
from meshray.linux.tasks import Tasks
from meshray.model.enrol import EnrolAnswer
from meshray.model.node import Versions
from meshray.model.token import Token
from meshray.protocol.connection import Hello
from meshray.wireguard.engines import find_engine
from meshray.wireguard.kernel import KernelDevice
from meshray.wireguard.open import KERNEL, check_available
from meshray.wireguard.plan import plan
from meshray.wireguard.userspace import UserspaceDevice
from tests.bench.crowd import Machine

#: The time until all handshakes are complete, and what each node adds to it, seconds.
PATIENCE_S, PATIENCE_EACH_S = 30.0, 0.3
#: The number of nodes that enrol, or get their device, at the same time.
AT_ONCE = 8


@dataclass
class Peer:
    """One node. Its number determines its device's name and its routing table."""

    number: int
    machine: Machine
    answer: EnrolAnswer
    link: Connection

    @classmethod
    async def enter(cls, number: int, token: Token) -> Peer:
        """Enrol and go online."""
        machine = Machine.named(f"peer-{number}", token)
        answer = await machine.enrol(token)
        link = await Coordinator(token.coordinators, token.fingerprint, answer.credential).open_connection()
        await link.send(Hello(Versions(__version__).form()))
        return cls(number, machine, answer, link)

    async def follow(self) -> None:
        """Read the coordinator's messages, like an agent."""
        async for _ in self.link.messages():
            pass

    @property
    def interface(self) -> str:
        """The name of its device."""
        return f"peer{self.number}"

    def make_device(self) -> None:
        """Create a device like a real node's, for its one peer, the hub."""
        mesh_map = self.answer.map
        me, hub = mesh_map.nodes[self.answer.node_id], mesh_map.hubs[0]
        keys = PairKeys({1: self.answer.mesh_secret}, me.public_key)
        desired = desired_device(
            me, mesh_map, keys, private_key=self.machine.key, listen_port=0, dial={hub.id: hub.endpoints[0]}
        )
        home = Home(Path("/var/lib/peers") / self.interface, Path("/run/peers") / self.interface)
        home.run.mkdir(parents=True)
        device = (
            KernelDevice(self.interface, home)
            if check_available() == KERNEL
            else UserspaceDevice(self.interface, home, engine=find_engine(os.environ))
        )
        device.apply(plan(device.read(), desired))

    def routing(self) -> str:
        """Return the commands for `ip -batch` that route packets from this node's address through its device."""
        mesh_map, table = self.answer.map, 1000 + self.number
        ip = mesh_map.nodes[self.answer.node_id].ip
        return (
            f"rule add from {ip} lookup {table}\n"
            f"route add {mesh_map.mesh.network.cidr} dev {self.interface} table {table}\n"
        )

    async def answer_probes(self) -> Prober:
        """Listen, and probe the hub until it answers."""
        mesh_map, prober = self.answer.map, Prober()
        ip = mesh_map.nodes[self.answer.node_id].ip
        await prober.open(ip, mesh_map.mesh.network.probe_address(ip))
        while await prober.probe(mesh_map.hubs[0].ip) is None:
            pass
        return prober

    async def beat(self, prober: Prober, rhythm: Rhythm) -> None:
        """Send the hub signs of life, like an agent."""
        hub = self.answer.map.hubs[0].ip
        while True:
            await asyncio.gather(prober.round_trip(hub, BEAT_S), asyncio.sleep(rhythm.beat_s))


async def main() -> None:
    """Run the program; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True)
    count = parser.parse_args().count
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    answering = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, answering.set)
    token, free, tasks = Token.parse(os.environ["TOKEN"]), asyncio.Semaphore(AT_ONCE), Tasks()

    async def enter(number: int) -> Peer:
        async with free:
            peer = await Peer.enter(number, token)
        # The coordinator's messages are read from the start: it gives up a connection that lags behind.
        tasks.start(peer.follow(), f"messages to {number}")
        return peer

    async def make_device(peer: Peer) -> None:
        async with free:
            await asyncio.to_thread(peer.make_device)

    peers = await asyncio.gather(*map(enter, range(count)))
    print("online", flush=True)
    await answering.wait()
    await asyncio.gather(*map(make_device, peers))
    lines = "".join(peer.routing() for peer in peers)
    await asyncio.to_thread(subprocess.run, ["ip", "-batch", "-"], input=lines, text=True, check=True)
    probers = await asyncio.wait_for(
        asyncio.gather(*(peer.answer_probes() for peer in peers)), PATIENCE_S + PATIENCE_EACH_S * count
    )
    for peer, prober in zip(peers, probers, strict=True):
        tasks.start(peer.beat(prober, Rhythm.of(count)), f"signs of life of {peer.number}")
    print("answering", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
