"""The relay with real WebSockets and real UDP on loopback; plain UDP sockets play WireGuard."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web

from meshray.client.coordinator import Coordinator
from meshray.coordinator.listener import TLS_BUFFER_BYTES
from meshray.errors import MeshrayError, RefusedError
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.protocol import connection as connection_codes
from meshray.relay import frames
from meshray.relay.client import LARGE_BYTES, RelayClient
from meshray.relay.frames import split, unpack
from meshray.relay.pump import BACKLOG_BYTES
from meshray.relay.relay_websocket import RelayWebSocket
from meshray.relay.server import Relay

from .coordinator_harness import PATIENCE_S, Running, running_mesh

LOOPBACK = "127.0.0.1"
#: The beginning of WireGuard's data messages.
DATA = b"\x04\x00\x00\x00"


def datagram(number: int, size: int = 148) -> bytes:
    return DATA + number.to_bytes(4, "big") + bytes(size - 8)


def pack(datagrams: list[bytes]) -> bytes:
    return b"".join(frames.pack(datagrams))


class Wire(asyncio.DatagramProtocol):
    """A UDP socket that records what it receives, and may echo it."""

    def __init__(self, *, echoes: bool) -> None:
        self._echoes = echoes
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.sources: list[tuple[str, int]] = []
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._heard.put_nowait(data)
        self.sources.append(addr)
        if self._echoes:
            self.send(data, addr)

    def send(self, data: bytes, to: tuple[str, int]) -> None:
        assert self.transport
        self.transport.sendto(data, to)

    async def hear(self) -> bytes:
        return await asyncio.wait_for(self._heard.get(), PATIENCE_S)

    @property
    def has_heard(self) -> bool:
        return not self._heard.empty()

    @property
    def address(self) -> tuple[str, int]:
        assert self.transport
        return cast("tuple[str, int]", self.transport.get_extra_info("sockname"))


@contextlib.asynccontextmanager
async def wire(*, echoes: bool = False) -> AsyncIterator[Wire]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: Wire(echoes=echoes), local_addr=(LOOPBACK, 0), family=socket.AF_INET
    )
    try:
        yield protocol
    finally:
        transport.close()


@dataclass
class Lane:
    """A node's end: its WireGuard, and the relay's client beside it."""

    client: RelayClient
    wireguard: Wire
    endpoint: tuple[str, int]
    tasks: Tasks

    def send(self, data: bytes) -> None:
        self.wireguard.send(data, self.endpoint)

    async def echo(self, number: int) -> None:
        """Send one datagram to the hub and wait for its echo."""
        self.send(datagram(number))
        assert await self.wireguard.hear() == datagram(number)


def known(mesh: Running, credential: str = "") -> Coordinator:
    here = Endpoint(LOOPBACK, mesh.client.port)
    return Coordinator((here,), mesh.token.fingerprint, credential or mesh.head.credential)


@contextlib.asynccontextmanager
async def lane(coordinator: Coordinator, hub: Endpoint | None = None) -> AsyncIterator[Lane]:
    """Open a lane. Without ``hub`` UDP is not tried."""
    client = RelayClient(lambda: coordinator, lambda: hub, pause_s=lambda attempt: 0.01, tries_udp=hub is not None)
    tasks = Tasks()
    async with wire() as wireguard:
        endpoint = await client.open()
        tasks.start(client.run(), "client")
        try:
            yield Lane(client, wireguard, (endpoint.host, endpoint.port), tasks)
        finally:
            await tasks.close()
            client.close()


async def until(condition: Callable[[], object]) -> None:
    async def poll() -> None:
        while not condition():  # noqa: ASYNC110 - a test's condition has no event
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), PATIENCE_S)


@contextlib.asynccontextmanager
async def relayed_mesh(folder: Path) -> AsyncIterator[tuple[Running, Wire, Relay]]:
    """Run a mesh whose hub's WireGuard answers everything."""
    async with wire(echoes=True) as hub:
        relay = Relay(hub.address[1])
        async with running_mesh(folder, relay=relay) as mesh:
            yield mesh, hub, relay


async def websocket(mesh: Running, credential: str = "") -> aiohttp.ClientWebSocketResponse[bool]:
    headers = {"Authorization": f"Bearer {credential or mesh.head.credential}"}
    url = f"https://{LOOPBACK}:{mesh.client.port}/v1/relay"
    return await mesh.client.session.ws_connect(url, headers=headers, ssl=mesh.client.pin)


async def closed(socket: aiohttp.ClientWebSocketResponse[bool]) -> int | None:
    while not (await socket.receive(PATIENCE_S)).type.name.startswith("CLOS"):
        pass
    return socket.close_code


async def test_datagrams_pass_in_both_directions_whole_and_in_order(tmp_path: Path) -> None:
    async with relayed_mesh(tmp_path) as (mesh, hub, _), lane(known(mesh)) as node:
        # WireGuard's packets before the connection is up must not be lost: a handshake comes only every 5 s.
        await node.echo(0)
        # Bursts that the plain sockets of this test can hold.
        for first in range(0, 200, 40):
            burst = [datagram(number, 32 if number % 7 == 0 else 1452) for number in range(first, first + 40)]
            for one in burst:
                node.send(one)
            assert [await node.wireguard.hear() for _ in burst] == burst
        assert len(set(hub.sources)) == 1
        large = datagram(1, 60_000)
        node.send(large)
        assert await node.wireguard.hear() == large


async def test_a_large_message_is_read_in_few_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: dict[bool, list[int]] = {True: [], False: []}
    original = RelayWebSocket.buffer_updated

    def counted(websocket: RelayWebSocket, nbytes: int) -> None:
        reads[websocket._is_client].append(nbytes)
        original(websocket, nbytes)

    monkeypatch.setattr(RelayWebSocket, "buffer_updated", counted)
    async with relayed_mesh(tmp_path) as (mesh, _, _), lane(known(mesh)) as node:
        await node.echo(0)
        # The first ones may be split by TCP's initial window.
        for number in range(1, 6):
            node.send(datagram(number, 60_000))
            assert await node.wireguard.hear() == datagram(number, 60_000)
    for side in reads.values():
        assert max(side) > 2 * TLS_BUFFER_BYTES, "each turn reads one record of TLS"


async def test_unauthenticated_clients_are_refused(tmp_path: Path) -> None:
    async with relayed_mesh(tmp_path) as (mesh, _, relay):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await websocket(mesh, "somebody")
        with pytest.raises(RefusedError, match="does not know this node"):
            await known(mesh, "somebody").open_relay()
        assert (await mesh.client.call("GET", "/v1/relay", credential=mesh.head.credential)).status == 400
        assert (await mesh.client.call("GET", "/v1/relay")).status == 401
        assert relay.count == 0


async def test_the_newest_connection_of_a_node_wins(tmp_path: Path) -> None:
    async with relayed_mesh(tmp_path) as (mesh, _, relay):
        first = await websocket(mesh)
        second = await websocket(mesh)
        assert await closed(first) == connection_codes.CLOSE_REPLACED
        await second.send_bytes(pack([datagram(1)]))
        assert unpack(await second.receive_bytes()) == [datagram(1)]
        assert relay.count == 1


@pytest.mark.parametrize(
    "garbage", [b"\x00", b"\x00\x05hello", pack([datagram(1)]) + b"\xff\xff", b"x" * 200_000, "text", b"\x00\x00" * 99]
)
async def test_garbage_ends_the_connection_on_which_it_came_alone(tmp_path: Path, garbage: bytes | str) -> None:
    async with relayed_mesh(tmp_path) as (mesh, hub, relay), lane(known(mesh)) as node:
        await node.echo(1)
        other = await mesh.client.enrol(mesh.token, "other")
        bad = await websocket(mesh, other.credential)
        await until(lambda: relay.count == 2)
        await (bad.send_str(garbage) if isinstance(garbage, str) else bad.send_bytes(garbage))
        # The rest of what is too large meets a closed connection, which may hide the code.
        assert await closed(bad) in ((1006, 1009) if len(garbage) > 100_000 else (connection_codes.CLOSE_BAD_MESSAGE,))
        await node.echo(2)
        assert node.client.connected
        await until(lambda: relay.count == 1)
        assert len(hub.sources) == 2


async def test_a_removed_node_is_cut_off_before_the_command_returns(tmp_path: Path) -> None:
    async with relayed_mesh(tmp_path) as (mesh, _, relay):
        other = await mesh.client.enrol(mesh.token, "other")
        connection = await websocket(mesh, other.credential)
        assert relay.count == 1
        mesh_connection = next(iter(relay._connections.values()))
        await mesh.admin("DELETE", "/v1/nodes/other")
        assert mesh_connection.reason == "this node was removed from the mesh"
        assert await closed(connection) == connection_codes.CLOSE_NOT_ACCEPTED
        await until(lambda: relay.count == 0)


async def test_the_relay_accepts_packets_only_from_the_hub(tmp_path: Path) -> None:
    async with relayed_mesh(tmp_path) as (mesh, hub, _), lane(known(mesh)) as node, wire() as outsider:
        await node.echo(1)
        outsider.send(datagram(66), hub.sources[0])
        await node.echo(2)
        assert not node.wireguard.has_heard


async def test_a_stalled_client_costs_little_and_harms_no_other(tmp_path: Path) -> None:
    async with relayed_mesh(tmp_path) as (mesh, hub, relay), lane(known(mesh)) as node:
        await node.echo(1)
        deaf = await mesh.client.enrol(mesh.token, "deaf")
        _, writer = await mesh.client.raw(receive_buffer=8192)
        writer.write(
            f"GET /v1/relay HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Authorization: Bearer {deaf.credential}\r\n\r\n".encode()
        )
        await until(lambda: relay.count == 2)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        connection = list(relay._connections.values())[-1]
        backlog, to = connection._pump.backlog, connection._pump._sock.getsockname()
        number = 0
        while not backlog.dropped:
            for _ in range(200):
                number += 1
                hub.send(datagram(number, 1452), to)
            await asyncio.sleep(0)
            assert backlog.size <= BACKLOG_BYTES
            assert number * 1452 < 100e6, "somewhere there is a queue without end"
        newest = [datagram for group in backlog.take() for datagram in split(group)]
        assert int.from_bytes(newest[0][4:8], "big") > 1, "the oldest were to be dropped"
        await node.echo(2)
        writer.transport.abort()
        await until(lambda: relay.count == 1)


async def test_the_client_comes_back(tmp_path: Path) -> None:
    async with relayed_mesh(tmp_path) as (mesh, _, relay), lane(known(mesh)) as node:
        await node.echo(1)
        (old,) = relay._connections.values()
        relay.close()
        await until(lambda: node.client.connected and relay.count == 1 and old not in relay._connections.values())
        await node.echo(2)


async def test_a_hub_whose_wireguard_is_down_is_waited_for(tmp_path: Path) -> None:
    async with wire() as gone:
        port = gone.address[1]
    async with running_mesh(tmp_path, relay=Relay(port)) as mesh, lane(known(mesh)) as node:
        for number in range(5):
            node.send(datagram(number))
        await until(lambda: node.client.connected)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: Wire(echoes=True), local_addr=(LOOPBACK, port))

        async def answered() -> None:
            while not node.wireguard.has_heard:
                node.send(datagram(9))
                await asyncio.sleep(0.01)

        await asyncio.wait_for(answered(), PATIENCE_S)
        transport.close()


async def test_udp_that_works_again_is_noticed(tmp_path: Path) -> None:
    # `outside` plays the hub's port as reached without the relay.
    async with (
        relayed_mesh(tmp_path) as (mesh, _, _),
        wire(echoes=True) as outside,
        lane(known(mesh), Endpoint(*outside.address)) as node,
    ):
        await until(lambda: node.client.connected)
        node.client.begin_trial()
        node.send(datagram(1, LARGE_BYTES))
        await asyncio.wait_for(node.client.udp_alive.wait(), PATIENCE_S)
        assert await node.wireguard.hear() == datagram(1, LARGE_BYTES)
        assert await outside.hear() == datagram(1, LARGE_BYTES)


@pytest.mark.parametrize(
    "data", [datagram(1), b"\x01\x00\x00\x00" + bytes(144), b"\x01\x00\x00\x00" + bytes(LARGE_BYTES)],
    ids=["small data", "a handshake", "a large handshake"],
)  # fmt: skip
async def test_only_large_data_tries_udp(tmp_path: Path, data: bytes) -> None:
    async with (
        relayed_mesh(tmp_path) as (mesh, _, _),
        wire(echoes=True) as outside,
        lane(known(mesh), Endpoint(*outside.address)) as node,
    ):
        await until(lambda: node.client.connected)
        node.client.begin_trial()
        node.send(data)
        assert await node.wireguard.hear() == data
        assert not outside.has_heard
        assert not node.client.udp_alive.is_set()


async def test_a_udp_handshake_does_not_prove_that_data_passes(tmp_path: Path) -> None:
    response = b"\x02\x00\x00\x00" + bytes(88)
    async with (
        relayed_mesh(tmp_path) as (mesh, _, _),
        wire() as outside,
        lane(known(mesh), Endpoint(*outside.address)) as node,
    ):
        await until(lambda: node.client.connected)
        node.client.begin_trial()
        node.send(datagram(1, LARGE_BYTES))
        await outside.hear()
        outside.send(response, outside.sources[0])
        received = [await node.wireguard.hear() for _ in range(2)]
        assert sorted(received) == sorted([response, datagram(1, LARGE_BYTES)])
        assert not node.client.udp_alive.is_set()
        # Data that arrives long after a trial does not answer it.
        node.client._trial_sent_at = float("-inf")
        outside.send(datagram(2), outside.sources[0])
        assert await node.wireguard.hear() == datagram(2)
        assert not node.client.udp_alive.is_set()


async def test_udp_that_does_not_answer_costs_nothing(tmp_path: Path) -> None:
    async with (
        relayed_mesh(tmp_path) as (mesh, _, _),
        wire() as silent,
        lane(known(mesh), Endpoint(*silent.address)) as node,
    ):
        await until(lambda: node.client.connected)
        assert node.client.trial_is_due
        node.client.begin_trial()
        for number in range(100):
            node.send(datagram(number, LARGE_BYTES))
            assert await node.wireguard.hear() == datagram(number, LARGE_BYTES)
        assert not node.client.udp_alive.is_set()
        assert 1 <= len(silent.sources) <= 32
        assert not node.client.trial_is_due
        node.client.try_udp_again()
        assert node.client.trial_is_due
        node.client.begin_trial()
        node.send(datagram(100, LARGE_BYTES))
        await until(lambda: len(set(silent.sources)) == 2)


# ---- proxies


@contextlib.asynccontextmanager
async def proxy(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[int]:
    """HTTPS_PROXY points to a server that answers like this."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await answer(reader, writer)
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, LOOPBACK, 0)
    port = int(listening.sockets[0].getsockname()[1])
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://ada:lovelace@{LOOPBACK}:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    try:
        yield port
    finally:
        listening.close()


async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer like a proxy that requires name and password, and supports CONNECT."""
    header = (await reader.readuntil(b"\r\n\r\n")).decode()
    if f"Proxy-Authorization: Basic {base64.b64encode(b'ada:lovelace').decode()}" not in header:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return
    method, target, _ = header.split(" ", 2)
    assert method == "CONNECT"
    host, _, port = target.rpartition(":")
    far_reader, far_writer = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

    async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            to.write(data)
            await to.drain()
        to.close()

    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)


async def test_the_relay_goes_through_a_proxy_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with relayed_mesh(tmp_path) as (mesh, _, _), proxy(monkeypatch, connect):
        async with lane(known(mesh)) as node:
            for number in range(20):
                await node.echo(number)
        assert "nodes" in await known(mesh).call("GET", "/v1/nodes")


async def test_another_certificate_is_refused_through_a_proxy_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relayed_mesh(tmp_path) as (mesh, _, _), proxy(monkeypatch, connect):
        other = Coordinator((Endpoint(LOOPBACK, mesh.client.port),), b"\x01" * 32, mesh.head.credential)
        for attempt in (other.open_relay, other.open_connection):
            with pytest.raises(RefusedError) as caught:
                await attempt()
            assert caught.value.code == "token_other_mesh"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "407"),
        (b"HTTP/1.1 403 Filtered\r\nContent-Length: 0\r\n\r\n", "403 Filtered"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not an HTTP proxy"),
    ],
)
async def test_a_proxy_that_does_not_connect_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, words: str
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with relayed_mesh(tmp_path) as (mesh, _, _), proxy(monkeypatch, refuse) as port:
        for attempt in (known(mesh).open_relay, lambda: known(mesh).call("GET", "/v1/nodes")):
            with pytest.raises(MeshrayError) as caught:
                await attempt()
            assert (caught.value.code, caught.value.exit_code) == ("proxy_refused", 5)
            assert words in caught.value.message
            assert f"{LOOPBACK}:{port}" in caught.value.message
            assert "lovelace" not in caught.value.message + caught.value.hint


async def test_a_missing_proxy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with relayed_mesh(tmp_path) as (mesh, _, _):
        async with proxy(monkeypatch, connect) as port:
            pass
        with pytest.raises(MeshrayError, match=f"{LOOPBACK}:{port} .*is unreachable") as caught:
            await known(mesh).open_relay()
        assert caught.value.code == "proxy_refused"


# ---- earlier versions, whose messages have single datagrams


async def test_a_node_of_an_earlier_version_uses_the_relay(tmp_path: Path) -> None:
    async with relayed_mesh(tmp_path) as (mesh, hub, _):
        node = await websocket(mesh)
        burst = [datagram(number, 32 if number % 7 == 0 else 1452) for number in range(40)]
        await node.send_bytes(pack(burst))
        assert [await hub.hear() for _ in burst] == burst
        received: list[bytes] = []
        while len(received) < len(burst):
            received += map(bytes, unpack(await asyncio.wait_for(node.receive_bytes(), PATIENCE_S)))
        assert received == burst
        await node.close()


async def test_a_coordinator_of_an_earlier_version_relays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []

    async def serve(self: Relay, request: web.Request, *_: object) -> web.WebSocketResponse:
        """Answer as an earlier version does: it does not know the header, and sends datagrams back."""
        answer = web.WebSocketResponse(heartbeat=0.2, compress=False)
        await answer.prepare(request)
        async for message in answer:
            datagrams = [bytes(one) for one in unpack(message.data)]
            received.extend(datagrams)
            await answer.send_bytes(pack(datagrams))
        return answer

    monkeypatch.setattr(Relay, "serve", serve)
    async with relayed_mesh(tmp_path) as (mesh, hub, _), lane(known(mesh)) as node:
        await node.echo(0)
        burst = [datagram(number, 32 if number % 7 == 0 else 1452) for number in range(40)]
        for one in burst:
            node.send(one)
        assert [await node.wireguard.hear() for _ in burst] == burst
        assert received[1:] == burst
        await asyncio.sleep(0.5)  # its pings are answered
        await node.echo(1)
        assert not hub.has_heard


async def test_whole_groups_pass_and_are_split_again(tmp_path: Path) -> None:
    async with relayed_mesh(tmp_path) as (mesh, hub, _), lane(known(mesh)) as node:
        await node.echo(0)
        burst = [datagram(number, 1452) for number in range(45)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as engine:
            engine.setsockopt(socket.IPPROTO_UDP, 103, 1452)  # UDP_SEGMENT
            engine.sendto(b"".join(burst), node.endpoint)
        await hub.hear()
        assert [await hub.hear() for _ in burst] == burst
