"""Unauthenticated clients are refused by the coordinator in bounded time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshray.coordinator import handlers
from meshray.coordinator.connection_limits import MAX_OF_MEMBER, MAX_UNAUTHENTICATED, ConnectionLimits
from meshray.coordinator.fair_limit import FairLimit
from meshray.coordinator.listener import MAX_HANDSHAKES
from meshray.linux.tasks import Tasks
from meshray.model.enrol import EnrolAnswer
from meshray.protocol.connection import CLOSE_NOT_ACCEPTED

from .coordinator_harness import PATIENCE_S, Client, Running, client_of, enrol_request, make_mesh, running_mesh
from .mesh import until
from .process_harness import coordinator_process

#: More connections than unauthenticated clients may have.
CROWD = MAX_UNAUTHENTICATED + 50


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@contextlib.asynccontextmanager
async def admin_is_served(client: Client, head: EnrolAnswer) -> AsyncIterator[None]:
    """Call like the admin, on a new connection each time, from before this block until after it.

    Every call must succeed.
    """
    stop, begun = asyncio.Event(), asyncio.Event()

    async def call() -> None:
        async with client_of(client.port, client.fingerprint) as admin:
            reply = await asyncio.wait_for(admin.call("GET", "/v1/nodes", credential=head.credential), PATIENCE_S)
            assert reply.status == 200, reply.body

    async def calls() -> None:
        while not stop.is_set():
            await call()
            begun.set()
            await asyncio.sleep(0.05)

    tasks = Tasks()
    tasks.start(calls(), "admin")
    try:
        await tasks.until(begun)
        yield
        await call()
        stop.set()
        await tasks.until(stop)
    finally:
        await tasks.close()


@contextlib.asynccontextmanager
async def attacked_mesh(folder: Path, connection_limits: ConnectionLimits | None = None) -> AsyncIterator[Running]:
    """Run a mesh whose admin must be served, whatever happens to its coordinator."""
    async with running_mesh(folder, connection_limits) as mesh, admin_is_served(mesh.client, mesh.head):
        yield mesh


async def crowd_of(client: Client, request: bytes, count: int = CROWD) -> list[asyncio.StreamWriter]:
    """Open this many connections that sent this request, or the beginning of one, and read nothing."""

    async def one() -> asyncio.StreamWriter | None:
        try:
            _, writer = await client.raw()
        except OSError:
            return None
        writer.write(request)
        return writer

    writers: list[asyncio.StreamWriter] = []
    while len(writers) < count:
        writers += [writer for writer in await asyncio.gather(*(one() for _ in range(50))) if writer is not None]
    return writers


async def answer_to(mesh: Running, *parts: bytes) -> bytes:
    """Return the answer to these bytes until the coordinator closes."""
    reader, writer = await mesh.client.raw()
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = ["POST /v1/enroll HTTP/1.1", "Host: x", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("name", "request_bytes", "status"),
    [
        ("no http", b"\x00\x01\x02 nonsense\r\n\r\n", b"400"),
        ("a long line", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", b"400"),
        ("a long header", b"GET /v1/hello HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n", b"400"),
        ("many headers", b"GET /v1/hello HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", b"4"),
        ("no json", post(b"hello"), b"400"),
        ("no object", post(b"[1]"), b"400"),
        ("deep", post(b"[" * 60_000), b"400"),
        ("a long number", post(b'{"uses": ' + b"9" * 60_000 + b"}"), b"400"),
        ("half a surrogate", post(json.dumps({"mesh_id": "\udc00"}).encode()), b"400"),
        ("not utf-8", post(b'{"mesh_id": "\xff\xfe"}'), b"400"),
        ("too large, as announced", post(b"x" * 10, length=10_000_000), b"413"),
        ("an unknown length", post(b"", length=-1), b"400"),
        ("unknown path", b"GET /v1/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        ("unknown page", b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"401"),
        ("unknown method", b"BREW /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n", b"4"),
        ("wrong method", b"DELETE /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        ("odd credential", b"GET /v1/nodes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n", b"401"),
        (
            "broken chunks",
            b"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
            b"400",
        ),
        (
            "compressed",
            post(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "Content-Encoding: gzip"),
            b"400",
        ),
    ],
)
async def test_malformed_requests_get_4xx(tmp_path: Path, name: str, request_bytes: bytes, status: bytes) -> None:
    async with attacked_mesh(tmp_path) as mesh:
        answer = await answer_to(mesh, request_bytes)
        assert answer.split(b" ", 2)[1].startswith(status), (name, answer[:200])
        assert (await mesh.client.call("GET", "/v1/hello")).status == 200


async def test_an_endless_body_is_cut_and_costs_no_memory(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path) as mesh:
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        header = b"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        before = resident_mib()
        answers = await asyncio.gather(*(answer_to(mesh, header, *[chunk] * 100) for _ in range(20)))
        assert all(not answer or b"413" in answer[:20] for answer in answers)
        assert any(answers)
        assert resident_mib() - before < 60
        reply = await mesh.client.call("POST", "/v1/enroll", b"x" * 1_000_000)
        assert (reply.status, reply.code) == (413, "request_too_large")


async def test_a_header_without_end_is_cut(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path) as mesh:
        answer = await answer_to(mesh, b"GET /v1/hello HTTP/1.1\r\n", *[b"A: b\r\n" * 1000] * 50)
        assert not answer or answer.split()[1].startswith(b"4")


async def test_idle_or_slow_clients_are_disconnected(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path, ConnectionLimits(header_s=0.4, request_s=0.4)) as mesh:

        async def drip(first: bytes) -> bytes:
            reader, writer = await mesh.client.raw()
            writer.write(first)
            closed = asyncio.gather(reader.read(), return_exceptions=True)
            while not closed.done():
                writer.write(b"a")
                await asyncio.wait({closed}, timeout=0.05)
            result = closed.result()[0]
            return result if isinstance(result, bytes) else b""

        slow_header = drip(b"GET /v1/hello HTTP/1.1\r\nA: ")
        slow_body = drip(post(b"{", length=60_000))
        silence = answer_to(mesh)
        answers = await asyncio.wait_for(asyncio.gather(slow_header, slow_body, silence), PATIENCE_S)
        assert not any(b"200" in answer[:20] for answer in answers)


async def test_many_silent_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path, ConnectionLimits(max_unauthenticated=20)) as mesh:
        silent = [await mesh.client.raw() for _ in range(60)]
        answer = await mesh.client.enrol(mesh.token)
        assert answer.credential
        gone = await asyncio.wait_for(
            asyncio.gather(*(reader.read() for reader, _ in silent[:40]), return_exceptions=True), PATIENCE_S
        )
        assert len(gone) == 40
        for _, writer in silent:
            writer.transport.abort()


async def test_unfinished_handshakes_do_not_block_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with attacked_mesh(tmp_path) as mesh:
        monkeypatch.setattr(mesh.server._listener, "_handshakes", FairLimit(20, asyncio.Task.cancel))
        silent = [await asyncio.open_connection("127.0.0.1", mesh.client.port) for _ in range(60)]
        assert (await mesh.client.call("GET", "/v1/hello")).status == 200
        gone = asyncio.gather(*(reader.read() for reader, _ in silent[:40]), return_exceptions=True)
        assert len(await asyncio.wait_for(gone, PATIENCE_S)) == 40
        silent[-1][1].write(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in await asyncio.wait_for(silent[-1][0].read(), PATIENCE_S)
        for _, writer in silent:
            writer.transport.abort()


async def test_connections_are_used_again(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path, ConnectionLimits(header_s=0.5)) as mesh:
        reader, writer = await mesh.client.raw()
        for _ in range(5):
            writer.write(b"GET /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            assert head.startswith(b"HTTP/1.1 200")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        # The next header is then awaited no longer than the first was.
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        writer.transport.abort()


async def test_random_json_never_makes_the_coordinator_fail(tmp_path: Path) -> None:
    dice = random.Random(7)
    values: list[object] = [None, True, -1, 2**70, 1e400, "", "x" * 600, "\ud800", [], [1], {}, {"ray": [1]}, {"a": {}}]
    async with attacked_mesh(tmp_path) as mesh:
        good = enrol_request(mesh.token)
        for _ in range(80):
            changed = {**good, **{key: dice.choice(values) for key in dice.sample(sorted(good), 2)}}
            reply = await mesh.client.call("POST", "/v1/enroll", changed)
            assert reply.status < 500, changed
            for path in ("/v1/tokens", "/v1/peers"):
                body = {"uses": dice.choice(values), "ttl_s": dice.choice(values), "name": dice.choice(values)}
                assert (await mesh.admin("POST", path, body)).status < 500, body


async def test_too_many_concurrent_requests_get_a_retry_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "MAX_REQUESTS", 0)
    async with attacked_mesh(tmp_path) as mesh:
        reply = await mesh.client.call("GET", "/v1/hello")
        assert (reply.status, reply.code) == (429, "busy")


async def test_requests_without_their_body_do_not_block_others(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path) as mesh:
        crowd = await crowd_of(mesh.client, post(b"", length=10), handlers.MAX_REQUESTS + 50)
        assert len(mesh.server._connection_limits._connections) <= MAX_UNAUTHENTICATED + 10
        assert (await mesh.client.enrol(mesh.token)).credential
        for writer in crowd:
            writer.transport.abort()


async def test_websockets_without_a_credential_are_counted(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path, ConnectionLimits(max_unauthenticated=50)) as mesh:
        member = await mesh.client.enrol(mesh.token)
        await mesh.admin("DELETE", "/v1/nodes/worker")
        crowd = await crowd_of(mesh.client, upgrade("nobody's"), 150)
        assert len(mesh.server._connection_limits._connections) <= 50 + 10
        removed = await mesh.client.agent(member.credential)
        assert await removed.until_closed() == CLOSE_NOT_ACCEPTED
        for writer in crowd:
            writer.transport.abort()


@pytest.mark.parametrize("path", ["/v1/agent", "/v1/relay"])
async def test_a_member_has_few_websockets(tmp_path: Path, path: str) -> None:
    async with attacked_mesh(tmp_path) as mesh:
        member, other = await mesh.client.enrol(mesh.token), await mesh.client.enrol(mesh.token)
        agent = await mesh.client.agent(other.credential)
        crowd = await crowd_of(mesh.client, upgrade(member.credential, path), 100)
        await agent.until_online("worker", True) if path == "/v1/agent" else await agent.receive()
        # Those above the limit are refused, and then closed.
        await until(lambda: len(mesh.server._connection_limits._connections) < 20, "the crowd to be sent away")
        for writer in crowd:
            writer.transport.abort()


async def test_a_member_with_many_requests_does_not_block_others(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path) as mesh:
        member, other = await mesh.client.enrol(mesh.token), await mesh.client.enrol(mesh.token)
        without_body = post(b"", f"Authorization: Bearer {member.credential}", length=10)
        crowd = await crowd_of(mesh.client, without_body, MAX_OF_MEMBER + 20)
        reply = await mesh.client.call("GET", "/v1/environment", credential=member.credential)
        assert (reply.status, reply.code) == (429, "busy")
        assert (await mesh.client.call("GET", "/v1/environment", credential=other.credential)).status == 200
        assert (await mesh.client.call("GET", "/v1/hello")).status == 200
        for writer in crowd:
            writer.transport.abort()


async def test_guessing_tokens_does_not_block_others(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path) as mesh:
        body = json.dumps({**enrol_request(mesh.token), "secret": "wrong", "proof": "x"}).encode()
        crowd = await crowd_of(mesh.client, post(body))
        assert (await mesh.client.enrol(mesh.token)).credential
        for writer in crowd:
            writer.transport.abort()


async def flood(mesh: Running, opening: bytes, piece: bytes, total: int) -> None:
    """Send without ever reading, until the coordinator stops reading, disconnects, or has received this much."""
    _, writer = await mesh.client.raw(receive_buffer=8192)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        writer.write(opening)
        for _ in range(total // len(piece)):
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 1.0)
    except (asyncio.TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()


def upgrade(credential: str, path: str = "/v1/agent") -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {credential}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("path", ["/v1/agent", "/v1/relay", "/v1/orders", "/v1/wheel"])
async def test_a_client_that_leaves_before_the_upgrade_is_not_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async with running_mesh(tmp_path) as mesh:
        for _ in range(5):
            _, writer = await mesh.client.raw()
            writer.write(upgrade(mesh.head.credential, path))
            writer.close()
            with contextlib.suppress(OSError):
                await asyncio.wait_for(writer.wait_closed(), PATIENCE_S)
        assert (await mesh.client.call("GET", "/v1/hello")).status == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


#: A masked ping of 125 bytes (RFC 6455, section 5.5.2), many times.
PINGS = (b"\x89\xfd\x00\x00\x00\x00" + b"p" * 125) * 500


async def test_pings_and_requests_without_end_cost_no_memory(tmp_path: Path) -> None:
    async with attacked_mesh(tmp_path) as mesh:
        member = await mesh.client.enrol(mesh.token)
        requests = b"GET /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
        before = resident_mib()
        floods = asyncio.gather(
            flood(mesh, upgrade(member.credential), PINGS, 20_000_000),
            flood(mesh, b"", requests, 20_000_000),
        )
        while not floods.done():
            # Others are answered meanwhile.
            assert (await asyncio.wait_for(mesh.client.call("GET", "/v1/hello"), PATIENCE_S)).status == 200
            await asyncio.wait({floods}, timeout=0.1)
        floods.result()
        assert resident_mib() - before < 40


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def test_a_crowd_from_one_address_is_cut_and_others_are_served(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)
    async with (
        coordinator_process(home, tmp_path / "log") as coordinator,
        client_of(coordinator.port, token.fingerprint) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        await stack.enter_async_context(admin_is_served(client, head))
        crowd = [await asyncio.open_connection("127.0.0.1", coordinator.port) for _ in range(400)]
        assert (await client.call("GET", "/v1/hello")).status == 200
        assert open_files(coordinator.process.pid) < MAX_HANDSHAKES + 50
        for _, writer in crowd:
            writer.transport.abort()
