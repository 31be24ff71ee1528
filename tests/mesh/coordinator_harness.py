"""A real coordinator on a loopback port, and clients that trust only its certificate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import aiohttp

from meshray.client.coordinator import proven
from meshray.coordinator.connection_limits import ConnectionLimits
from meshray.coordinator.mesh_creation import create_mesh
from meshray.coordinator.server import Server
from meshray.home import Home
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.attestation import Attestation
from meshray.model.enrol import EnrolAnswer, EnrolRequest
from meshray.model.keys import PrivateKey, PublicKey, SigningKey
from meshray.model.meshmap import MapChange, MeshMap
from meshray.model.node import Versions
from meshray.model.token import Token
from meshray.protocol.codec import decode_object, to_json
from meshray.protocol.connection import Change, WholeMap, read_coordinator
from meshray.relay.server import Relay

VERSIONS = Versions("0.1.0", "2.60.0", "3.11.7")
#: Nothing on loopback takes this long; a test that waits longer has failed.
PATIENCE_S = 15.0
#: The credential of the node that runs the coordinator.
HEAD_IDENTITY = SigningKey.generate()
Json = Mapping[str, object]


class Clock:
    """Wall time that a test sets."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def make_mesh(folder: Path, network: str = "10.99.0.0/16") -> tuple[Home, EnrolAnswer, Token]:
    home, key = Home(folder / "state", folder / "run"), PrivateKey.generate().public()
    answer, token = create_mesh(
        home,
        mesh_name="lab",
        network=OverlayNetwork.parse(network),
        node_name=NodeName("head"),
        public_key=key,
        port=51888,
        endpoints=(Endpoint("127.0.0.1", 51888),),
        advertised=(Endpoint("127.0.0.1", 51888),),
        versions=VERSIONS,
        labels={},
        now=time.time(),
        attest=lambda mesh_id: Attestation.sign(HEAD_IDENTITY, mesh_id, key, counter=1),
    )
    return home, answer, token


#: The private halves of the keys in requests of `enrol_request`, by their public halves.
KEYS: dict[str, PrivateKey] = {}


def new_key() -> str:
    """Return a public key whose private half `with_proof` knows."""
    key = PrivateKey.generate()
    KEYS[str(key.public())] = key
    return str(key.public())


def with_proof(hello: Json, path: str, body: Json) -> Json:
    """Return the body with the proof of its key, if that is one of `new_key`."""
    key = KEYS.get(str(body.get("public_key")))
    return body if key is None else proven(hello, path, body, key)


def enrol_request(token: Token, name: str = "worker", **changes: object) -> dict[str, object]:
    request = EnrolRequest(
        token.mesh_id,
        token.token_id,
        token.secret,
        NodeName(name),
        False,
        PublicKey.parse(new_key()),
        VERSIONS,
        with_ray=True,
    )
    return {**to_json(request.form()), **changes}


@dataclass
class Reply:
    status: int
    body: Json

    @property
    def code(self) -> str:
        return str(cast("Json", self.body["error"])["code"])

    @property
    def exit_code(self) -> object:
        return self.body["exit_code"]


@dataclass
class Agent:
    """The agent's side of one WebSocket, which follows the map like a real one."""

    socket: aiohttp.ClientWebSocketResponse[bool]
    map: MeshMap | None = None
    texts: list[str] = field(default_factory=list)

    async def receive(self) -> str:
        """Receive one message of the map; return its type, or ``closed``."""
        kind = "ticket"
        while kind in ("ticket", "restored", "secrets"):
            message = await self.socket.receive(PATIENCE_S)
            if message.type is not aiohttp.WSMsgType.TEXT:
                return "closed"
            answer = read_coordinator(message.data)
            kind = str(json.loads(message.data)["type"])
        self.texts.append(message.data)
        if isinstance(answer, WholeMap):
            self.map = MeshMap.of(answer.map)
        else:
            assert self.map is not None, "a change came before the map"
            assert isinstance(answer, Change)
            self.map = self.map.apply(MapChange.of(answer.change))
        return kind

    async def until(self, names: set[str]) -> MeshMap:
        """Follow until exactly these nodes are in the map."""
        while self.map is None or {node.name for node in self.map.nodes.values()} != names:
            assert await self.receive() != "closed"
        return self.map

    async def until_online(self, name: str, online: bool) -> MeshMap:
        """Follow until this node is online, or is not."""
        while self.map is None or (node := self.map.find(name)) is None or node.online is not online:
            assert await self.receive() != "closed"
        return self.map

    async def until_closed(self) -> int | None:
        """Follow until the coordinator closes; return its code."""
        while await self.receive() != "closed":
            pass
        return self.socket.close_code


class Client:
    """An HTTPS client of a coordinator on loopback."""

    def __init__(self, session: aiohttp.ClientSession, port: int, fingerprint: bytes) -> None:
        self.session = session
        self.port = port
        self._hello: Json | None = None
        self.fingerprint = fingerprint
        self.pin = aiohttp.Fingerprint(fingerprint)

    async def call(self, method: str, path: str, body: object = None, credential: str = "") -> Reply:
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        if path == "/v1/enroll" and isinstance(body, dict):
            body = with_proof(await self.hello(), path, body)
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"https://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, data=data, headers=headers, ssl=self.pin) as response:
            return Reply(response.status, decode_object(await response.read()))

    async def hello(self) -> Json:
        """Return the coordinator's answer to every client, requested once."""
        if self._hello is None:
            self._hello = (await self.call("GET", "/v1/hello")).body
        return self._hello

    async def enrol(self, token: Token, name: str = "worker", **changes: object) -> EnrolAnswer:
        reply = await self.call("POST", "/v1/enroll", enrol_request(token, name, **changes))
        assert reply.status == 200, reply.body
        return EnrolAnswer.from_json(reply.body)

    async def agent(self, credential: str) -> Agent:
        headers = {"Authorization": f"Bearer {credential}"}
        url = f"https://127.0.0.1:{self.port}/v1/agent"
        return Agent(await self.session.ws_connect(url, headers=headers, ssl=self.pin, max_msg_size=1 << 25))

    async def raw(self, receive_buffer: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a TLS connection on which a test sends anything; a small buffer (bytes) fills soon."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.socket()
        plain.setblocking(False)
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=plain, ssl=context, server_hostname="meshray")


@dataclass
class Running:
    home: Home
    server: Server
    client: Client
    head: EnrolAnswer
    token: Token
    clock: Clock

    async def admin(self, method: str, path: str, body: object = None) -> Reply:
        return await self.client.call(method, path, body, self.head.credential)


@contextlib.asynccontextmanager
async def client_of(port: int, fingerprint: bytes) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(session, port, fingerprint)


@contextlib.asynccontextmanager
async def running_mesh(
    folder: Path, connection_limits: ConnectionLimits | None = None, relay: Relay | None = None
) -> AsyncIterator[Running]:
    """Run a new mesh and its coordinator, in this process."""
    home, head, token = make_mesh(folder)
    async with running_server(home, head, token, connection_limits, relay) as running:
        yield running


@contextlib.asynccontextmanager
async def running_server(
    home: Home,
    head: EnrolAnswer,
    token: Token,
    connection_limits: ConnectionLimits | None = None,
    relay: Relay | None = None,
) -> AsyncIterator[Running]:
    """Run the coordinator of an existing mesh."""
    clock = Clock()
    server = Server(
        home, port=0, hosts=("127.0.0.1",), clock=clock, connection_limits=connection_limits, relay=relay, settle_s=0
    )
    await server.start()
    try:
        async with client_of(server.port, token.fingerprint) as client:
            yield Running(home, server, client, head, token, clock)
    finally:
        await server.stop()
