"""Record what is really emitted: answers of the coordinator, messages of the agents, answers of control sockets.

init ──► join ──► every command with --json, on real agents with fake devices and a real coordinator
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from meshray import __version__
from meshray.agent.agent import Agent
from meshray.agent.control.control_server import ControlServer, Operation
from meshray.agent.control.control_server import Operations as ByRequest
from meshray.agent.control.operations import Operations
from meshray.agent.dependencies import Dependencies
from meshray.agent.paths.prober import Prober
from meshray.agent.state import NodeState
from meshray.agent.status.startup_progress import Emit
from meshray.cli import bring_up, main
from meshray.cli.app import App
from meshray.client.agent import ControlClient
from meshray.client.coordinator import Connection
from meshray.coordinator import handlers
from meshray.coordinator.publisher import Outbox
from meshray.coordinator.server import Server
from meshray.home import Home
from meshray.linux import ports
from meshray.linux.clock import unix_s
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.node import Versions
from meshray.node import cleanup
from meshray.node.enrolment import Enrolment, load_private_key
from meshray.node.map_cache import load_map
from meshray.protocol.answers import EXAMPLES
from meshray.protocol.codec import to_json
from meshray.protocol.connection import Message
from meshray.protocol.control import Request, Summary, TakeDown
from meshray.runtime import agent_service, own_endpoints, preflight
from tests.fake_device import FakeDevice

Json = Mapping[str, object]
DEADLINE_S = 40.0


class Recorder:
    """The emitted values, by their emitter: ``GET /v1/nodes``, ``agent hello``, ``control status``, ``cli status``."""

    def __init__(self) -> None:
        self.values: dict[str, list[Json]] = defaultdict(list)

    def note(self, emitter: str, value: Json) -> None:
        """Record the value as it travels: as JSON."""
        self.values[emitter].append(json.loads(json.dumps(value)))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Wrap the emitters."""
        answer, send, send_str = handlers._ApiMiddleware._answer, Connection.send, web.WebSocketResponse.send_str
        open_server, take = ControlServer.__init__, Outbox.take

        async def answer_noted(
            self: handlers._ApiMiddleware,
            request: web.Request,
            handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
        ) -> web.StreamResponse:
            response = await answer(self, request, handler)
            if isinstance(response, web.Response) and isinstance(response.body, bytes):
                resource = request.match_info.route.resource
                path = resource.canonical if resource is not None else "?"
                error = response.status >= 400
                recorder.note("error" if error else f"{request.method} {path}", json.loads(response.body))
            return response

        async def send_noted(self: Connection, message: Message) -> None:
            value = to_json(message)
            recorder.note(f"agent {value['type']}", value)
            await send(self, message)

        async def send_str_noted(self: web.WebSocketResponse, data: str, compress: int | None = None) -> None:
            message = json.loads(data)
            recorder.note(f"coordinator {message['type']}", message)
            await send_str(self, data, compress)

        def take_noted(self: Outbox) -> bytes | None:
            taken = take(self)
            if taken is not None:
                message = json.loads(taken)
                recorder.note(f"coordinator {message['type']}", message)
            return taken

        def open_server_noted(
            self: ControlServer,
            operations: ByRequest,
            owner_operations: ByRequest,
            user_uid: int,
        ) -> None:
            open_server(self, recorder._wrapped(operations), recorder._wrapped(owner_operations), user_uid)

        recorder = self
        patch.setattr(handlers._ApiMiddleware, "_answer", answer_noted)
        patch.setattr(Connection, "send", send_noted)
        patch.setattr(web.WebSocketResponse, "send_str", send_str_noted)
        patch.setattr(Outbox, "take", take_noted)
        patch.setattr(ControlServer, "__init__", open_server_noted)

    def _wrapped(self, operations: ByRequest) -> ByRequest:
        def wrap(name: str, operation: Operation) -> Operation:
            async def noted(request: Request[Any], emit: Emit) -> object:
                async def emit_noted(event: msgspec.Struct) -> None:
                    self.note(f"control {name} event", to_json(event))
                    await emit(event)

                answer = await operation(request, emit_noted)
                self.note(f"control {name}", to_json(answer))
                return answer

            return noted

        return {form: wrap(form.operation(), operation) for form, operation in operations.items()}


class QuietApp(App):
    """The command line in this process."""

    def run_from_copy(self) -> None:
        """Continue in this process, whichever user's files these are."""


@dataclass
class Node:
    """A node of this process."""

    home: Home
    agent: Agent
    device: FakeDevice
    control: ControlServer
    task: asyncio.Task[None]


@dataclass
class Machines:
    """Machines in this process: each has a folder and a command line; the work of a service also runs here."""

    folder: Path
    port: int
    network: IPv4Network
    recorder: Recorder
    loop: asyncio.AbstractEventLoop
    server: Server | None = None
    nodes: dict[str, Node] = field(default_factory=dict)

    def home(self, machine: str) -> Home:
        return Home(self.folder / machine, self.folder / machine / "run")

    async def type(self, machine: str, *words: str, fails: bool = False) -> Json:
        """Run a command with --json on this machine; its answer is recorded."""
        answer = await asyncio.to_thread(self._type, machine, words)
        assert ("error" in answer) == fails, (words, answer)
        return answer

    def _type(self, machine: str, words: tuple[str, ...]) -> Json:
        end = words.index("--") if "--" in words else len(words)
        home, out, err = self.home(machine), io.StringIO(), io.StringIO()
        environ = {"MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run), "NO_PROXY": "*"}
        environ["XDG_STATE_HOME"] = str(self.folder / f"{machine}-user")
        typed = (*words[:end], "--json", *words[end:])
        app = QuietApp(typed, as_json=True, environ=environ, stdin=io.StringIO(), stdout=out, stderr=err, euid=0)
        code = main.run(app)
        answer: Json = json.loads(out.getvalue())
        assert ("error" in answer) == (code not in (0, 3))
        name = next(name for name in (" ".join(words[:2]), words[0]) if name in EXAMPLES)
        self.recorder.note("cli error" if "error" in answer else f"cli {name}", answer)
        return answer

    async def start(self, home: Home) -> None:
        """Start what the service runs: the agent, on the head beside its coordinator."""
        enrolment = Enrolment.load(home)
        if enrolment.hosts_coordinator and self.server is None:
            await self.start_server(home)
        if home.state.name.startswith("gpu-2"):
            # Chosen after `--`, on a node that runs Ray.
            enrolment = replace(enrolment, ray_args=("--metrics-export-port=8500",))
        device = FakeDevice()
        address = Endpoint(f"192.0.2.{len(self.nodes) + 10}", enrolment.listen_port or 51888)

        async def endpoints(port: int, network: OverlayNetwork) -> tuple[Endpoint, ...]:
            return (address,)

        versions = Versions(meshray=__version__, build="3f5a0c9e12ab")
        parts = Dependencies(device, Prober(), endpoints=endpoints, versions=versions)
        agent = Agent(NodeState(home, enrolment, load_map(home)), load_private_key(home), parts)
        operations = Operations(agent, lambda: {"RAY_ADDRESS": "127.0.0.1:6379"})
        control = ControlServer(operations.for_all_users(), operations.for_owner(), 0)
        home.run.mkdir(exist_ok=True)
        await control.open(home.control_socket)

        async def run() -> None:
            try:
                await agent.run()
            finally:
                control.close()

        self.nodes[home.state.name] = Node(home, agent, device, control, self.loop.create_task(run()))

    async def start_server(self, home: Home) -> None:
        self.server = Server(home, port=self.port, hosts=("127.0.0.1",))
        await self.server.start()

    def start_and_follow(self, app: App, home: Home) -> Summary:
        asyncio.run_coroutine_threadsafe(self.start(home), self.loop).result(DEADLINE_S)
        return bring_up.follow(home, lambda stage, state, detail: None)

    def stop(self, home: Home) -> bool:
        node = self.nodes.get(home.state.name)
        if node is None or node.task.done():
            return False
        ControlClient(home.control_socket).request(TakeDown())
        ended = threading.Event()
        self.loop.call_soon_threadsafe(node.task.add_done_callback, lambda task: ended.set())
        assert ended.wait(DEADLINE_S)
        return True

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Replace the service and the examination of this machine."""

        async def found(port: int) -> tuple[Endpoint, ...]:
            return (Endpoint("127.0.0.1", port),)

        patch.setattr(bring_up, "start_and_follow", self.start_and_follow)
        patch.setattr("meshray.cli.rollback._SIGNALS", ())  # It is handled in the main thread, which runs the agents.
        patch.setattr(agent_service, "is_running", lambda home: agent_service.answers(home.control_socket))
        patch.setattr(agent_service, "runs_from", lambda home: None)
        patch.setattr(agent_service, "stop", self.stop)
        patch.setattr(agent_service, "uninstall", lambda home: None)
        patch.setattr(cleanup, "clear", lambda home: [])
        patch.setattr(own_endpoints, "find_endpoints", found)
        patch.setattr(preflight, "check_wireguard", lambda environ: "kernel WireGuard")
        patch.setattr(preflight, "check_network_and_port", lambda network, port: None)
        patch.setattr(preflight, "routes", list)
        patch.setattr(ports, "require_free", lambda port, kinds=(): None)
        patch.setattr("meshray.firewall.open_port_commands", lambda port: [f"ufw allow {port}/udp"])

    async def shake_hands(self) -> None:
        """Simulate WireGuard: two devices that have each other as peers perform handshakes, until cancelled."""
        while True:
            by_key = {node.agent.state.me.public_key: node for node in self.nodes.values() if not node.task.done()}
            for key, node in by_key.items():
                for peer in list(node.device.state.peers) if node.device.state else []:
                    other = by_key.get(peer)
                    if other is not None and other.device.state is not None and key in other.device.state.peers:
                        address = await other.agent.parts.endpoints(51888, other.agent.state.map.mesh.network)  # type: ignore[misc]
                        node.device.hear(peer, now=unix_s(), endpoint=address[0], rx_bytes=148, tx_bytes=92)
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for node in self.nodes.values():
            node.task.cancel()
            if node.agent.parts.prober is not None:
                node.agent.parts.prober.close()
        await asyncio.gather(*(node.task for node in self.nodes.values()), return_exceptions=True)
        if self.server is not None:
            await self.server.stop()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_S:.0f} s: {what}"
        await asyncio.sleep(0.02)
