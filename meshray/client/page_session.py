"""A session of the coordinator's page for a program: a pass is exchanged once, and its session is kept in a file.

    https://HEAD:51888/enter#PASS.FINGERPRINT ──POST /enter──► cookie ──► file ──► /tcp/NODE/PORT, /orders

>>> session = await open_session(PageUrl.parse(url), folder)
>>> tunnel = await session.tunnel("gpu-1", 8350)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from meshray.client.dialer import CONNECT_TIMEOUT_S, describe
from meshray.errors import MeshrayError, RefusedError, UnreachableError, UsageError
from meshray.linux.files import make_folder, write_atomically
from meshray.linux.tcp_keepalive import keep_alive
from meshray.model.address import Endpoint
from meshray.model.permission_level import Level
from meshray.protocol.orders import MAX_ORDER_BYTES
from meshray.protocol.page import CSRF_HEADER, ORDERS_PATH, csrf_token
from meshray.protocol.tunnel import EOF, ERROR_HEADER, MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import aiohttp
    from aiohttp import AddrInfoType

_SECRET = re.compile(r"([A-Za-z0-9_-]{20,128})\.([0-9a-f]{64})")
_MAX_FILE_BYTES = 4096
_HANDSHAKE_S = 20.0
_CLOSE_S = 2.0
_CLOSE_POLL_S = 0.01


@dataclass(frozen=True)
class PageUrl:
    """The URL that `meshray web invite` prints.

    Attributes:
        secret: of the pass.
        fingerprint: SHA-256 of the coordinator's certificate; no other is trusted.
        level: the lowest level that the pass must have, for hints.
    """

    endpoint: Endpoint
    secret: str = field(repr=False)
    fingerprint: bytes
    level: Level = Level.USE

    @classmethod
    def parse(cls, text: str, level: Level = Level.USE) -> PageUrl:
        """Return the parts of the URL. Raises UsageError ``bad_pass``, which does not contain the secret."""
        bad = UsageError(
            "bad_pass",
            "the pass is not a URL of the form https://HEAD:PORT/enter#…",
            hint=f"the whole line that {invite_command(level)} prints, between quotes",
        )
        try:
            parts = urlsplit(text.strip())
            found = _SECRET.fullmatch(unquote(parts.fragment))
            if parts.scheme != "https" or parts.path != "/enter" or not parts.netloc or found is None:
                raise bad
            endpoint = Endpoint.parse(parts.netloc, 443)
        except (ValueError, UsageError):
            raise bad from None
        return cls(endpoint, found[1], bytes.fromhex(found[2]), level)


@dataclass(frozen=True)
class PageSession:
    """A session, as stored in its file.

    Attributes:
        cookie: its name and value.
        level: the lowest level that its pass must have, for hints.
    """

    endpoint: Endpoint
    fingerprint: bytes
    cookie: str = field(repr=False)
    level: Level = Level.USE

    @property
    def origin(self) -> str:
        """The origin of the page."""
        return f"https://{self.endpoint}"

    async def tunnel(self, node: str, port: int) -> WebTunnel:
        """Open a TCP connection to a node's port.

        Raises:
            UnreachableError: the coordinator does not answer.
            RefusedError: ``session_ended``, ``level_too_low``.
            MeshrayError: the node or port cannot be reached.
        """
        import aiohttp

        try:
            return WebTunnel(*await self._open(f"/tcp/{node}/{port}", {}, MAX_MESSAGE_BYTES))
        except aiohttp.WSServerHandshakeError as error:
            code = error.headers.get(ERROR_HEADER, "") if error.headers is not None else ""
            raise _refused(error.status, code, node, port) from None

    async def order(self) -> PageSocket:
        """Open the WebSocket for one order (`meshray.protocol.orders`).

        Raises:
            UnreachableError: the coordinator does not answer.
            RefusedError: ``session_ended``.
            MeshrayError: ``busy``; ``coordinator_too_old``: it takes no orders with a pass.
        """
        import aiohttp

        secret = self.cookie.partition("=")[2]
        try:
            client, websocket = await self._open(ORDERS_PATH, {CSRF_HEADER: csrf_token(secret)}, MAX_ORDER_BYTES)
        except aiohttp.WSServerHandshakeError as error:
            raise self._order_refused(error.status) from None
        connection = websocket.get_extra_info("socket")
        if connection is not None:
            # The user waits for new lines without sending anything.
            keep_alive(connection)
        return PageSocket(client, websocket)

    async def require(self) -> None:
        """Raise RefusedError ``session_ended`` if it has ended, and UnreachableError without an answer."""
        import aiohttp

        pin = aiohttp.Fingerprint(self.fingerprint)
        async with _Client() as client:
            try:
                async with client.get(
                    f"{self.origin}{ORDERS_PATH}", headers={"Cookie": self.cookie}, ssl=pin
                ) as answer:
                    status = answer.status
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                raise _unreachable(self.endpoint, error, self.level) from None
        if status == 401:
            raise _session_ended(self.level)

    async def _open(
        self, path: str, headers: Mapping[str, str], max_message_bytes: int
    ) -> tuple[_Client, aiohttp.ClientWebSocketResponse[bool]]:
        """Return a WebSocket and the client to close after it.

        Raises:
            UnreachableError: the coordinator does not answer.
            WSServerHandshakeError: it refuses.
        """
        import aiohttp

        client = _Client()
        try:
            websocket = await client.http.ws_connect(
                f"{self.origin}{path}",
                headers={"Cookie": self.cookie, "Origin": self.origin, **headers},
                ssl=aiohttp.Fingerprint(self.fingerprint),
                max_msg_size=max_message_bytes,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError:
            await client.close()
            raise
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            await client.close()
            raise _unreachable(self.endpoint, error, self.level) from None
        except BaseException:
            await client.close()
            raise
        return client, websocket

    def _order_refused(self, status: int) -> MeshrayError:
        if status == 401:
            return _session_ended(self.level)
        if status == 404:
            return MeshrayError(
                "coordinator_too_old",
                "the coordinator's meshray is too old: it takes no orders with a pass",
                hint="update meshray on the head, then there: meshray down; meshray up",
            )
        if status == 429:
            return MeshrayError("busy", "the coordinator has reached its limit of connections", hint="try again later")
        return MeshrayError(
            "order_failed",
            f"the coordinator refused the order (HTTP {status})",
            hint="on the head: meshray logs coordinator",
        )


class PageSocket:
    """A WebSocket of the page, such as that of one order."""

    def __init__(self, client: _Client, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._client = client
        self.socket = socket

    async def close(self) -> None:
        """Close it, which cancels an order, or ends both directions of a tunnel."""
        try:
            await self.socket.close()
        finally:
            await self._client.close()


class WebTunnel(PageSocket):
    """One TCP connection in a WebSocket."""

    async def read(self) -> AsyncIterator[bytes]:
        """Yield what arrives until the other side ends its direction. Raises ConnectionError if it broke off."""
        import aiohttp

        while True:
            message = await self.socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                yield message.data
            elif message.type is aiohttp.WSMsgType.TEXT and message.data == EOF:
                return
            else:
                raise ConnectionResetError("the tunnel ended")

    async def write(self, data: bytes) -> None:
        """Send bytes, once the other side has read enough of the previous ones. Raises ConnectionError."""
        await self.socket.send_bytes(data)

    async def write_eof(self) -> None:
        """End this direction. Raises ConnectionError."""
        await self.socket.send_str(EOF)


def invite_command(level: Level) -> str:
    """Return the command that creates a pass of this level."""
    return f"meshray web invite NAME --{level.word}"


async def open_session(url: PageUrl, folder: Path) -> PageSession:
    """Return the session of this pass: the one in the folder, or a new one, which is then kept there.

    Raises:
        UnreachableError: the coordinator does not answer.
        RefusedError: ``pass_refused``: the pass is unknown, used, expired or revoked.
    """
    file = folder / f"{hashlib.sha256(url.secret.encode()).hexdigest()[:32]}.json"
    kept = _read(file)
    if kept is not None and kept.fingerprint == url.fingerprint:
        # The coordinator may have another address now.
        return PageSession(url.endpoint, url.fingerprint, kept.cookie, url.level)
    created = PageSession(url.endpoint, url.fingerprint, await _exchange(url), url.level)
    make_folder(folder)
    text = {"endpoint": str(created.endpoint), "fingerprint": created.fingerprint.hex(), "cookie": created.cookie}
    write_atomically(file, json.dumps(text))
    return created


def kept_sessions(folder: Path, level: Level = Level.USE) -> list[PageSession]:
    """Return all sessions in the folder; some may have ended, or have a lower level."""
    found = [_read(file) for file in sorted(folder.glob("*.json"))[:64]] if folder.is_dir() else []
    return [replace(session, level=level) for session in found if session is not None]


def delete_session(folder: Path, session: PageSession) -> None:
    """Delete the file of a session that has ended."""
    for file in folder.glob("*.json"):
        if (kept := _read(file)) is not None and kept.cookie == session.cookie:
            file.unlink(missing_ok=True)


async def _exchange(url: PageUrl) -> str:
    """Return the cookie of a new session."""
    import aiohttp

    origin = f"https://{url.endpoint}"
    async with _Client() as client:
        try:
            async with client.post(
                f"{origin}/enter",
                data={"pass": url.secret},
                headers={"Origin": origin},
                ssl=aiohttp.Fingerprint(url.fingerprint),
                allow_redirects=False,
            ) as answer:
                cookies = answer.headers.getall("Set-Cookie", [])
                status = answer.status
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise _unreachable(url.endpoint, error, url.level) from None
    if status == 429:
        raise MeshrayError("busy", "too many wrong passes came from this machine", hint="try again in a minute")
    with contextlib.suppress(CookieError):
        for text in cookies:
            for name, morsel in SimpleCookie(text).items():
                if status == 303 and morsel.value:
                    return f"{name}={morsel.value}"
    raise RefusedError(
        "pass_refused",
        "the coordinator does not accept this pass: it was used by another program or browser, has expired, or was "
        "revoked",
        hint=f"on the head: {invite_command(url.level)}",
    )


def _read(file: Path) -> PageSession | None:
    try:
        with file.open() as opened:
            value = json.loads(opened.read(_MAX_FILE_BYTES))
        fingerprint = bytes.fromhex(value["fingerprint"])
        return PageSession(Endpoint.parse(value["endpoint"]), fingerprint, str(value["cookie"]))
    except (OSError, ValueError, KeyError, TypeError, MeshrayError):
        return None


class _Client:
    """An HTTP client whose connections are closed when `close` returns, also those that the coordinator refused.

    aiohttp waits only for connections that could be used again, and a command ends its event loop immediately.
    """

    def __init__(self) -> None:
        import aiohttp

        from meshray.client.resolver import Resolver

        self._sockets: list[socket.socket] = []
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=Resolver(), socket_factory=self._socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=_HANDSHAKE_S, sock_connect=CONNECT_TIMEOUT_S),
            trust_env=True,
        )

    async def __aenter__(self) -> aiohttp.ClientSession:
        return self.http

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; wait for the end of their TLS, but not for a machine that is gone."""
        await self.http.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CLOSE_S
        while self._is_open and loop.time() < deadline:  # noqa: ASYNC110 - a socket has no event for its end
            await asyncio.sleep(_CLOSE_POLL_S)

    @property
    def _is_open(self) -> bool:
        return any(each.fileno() != -1 for each in self._sockets)

    def _socket(self, address: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        opened = socket.socket(family, kind, protocol)
        self._sockets.append(opened)
        return opened


def _unreachable(endpoint: Endpoint, error: Exception, level: Level) -> MeshrayError:
    import aiohttp

    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return RefusedError(
            "certificate_other",
            f"{endpoint} shows another certificate than the one that this pass is for; nothing was sent",
            hint=f"on the head: {invite_command(level)}",
        )
    return UnreachableError(
        "coordinator_unreachable",
        f"the coordinator does not answer ({endpoint}: {describe(error)})",
        hint="on the head: meshray status",
    )


def _session_ended(level: Level) -> RefusedError:
    return RefusedError(
        "session_ended", "the session of this pass has ended", hint=f"on the head: {invite_command(level)}"
    )


def _refused(status: int, code: str, node: str, port: int) -> MeshrayError:
    """Return the error for a refused tunnel."""
    where = f"port {port} of {node}"
    known = {
        "node_unknown": UsageError("node_unknown", f"the mesh has no node {node!r}", hint="meshray forward --help"),
        "no_ray_head": MeshrayError("no_ray_head", "this mesh has no Ray head: name a node"),
        "node_offline": UnreachableError("node_offline", f"{node} is offline", hint=f"on {node}: meshray up"),
        "refused": MeshrayError(
            "connection_refused", f"{where} refuses connections", hint=f"on {node}: ss -ltn 'sport = :{port}'"
        ),
        "connect_timed_out": MeshrayError("connection_timed_out", f"{where} does not answer", hint="meshray doctor"),
        "busy": MeshrayError("busy", "the coordinator has reached its limit of connections", hint="try again later"),
    }
    if code in known:
        return known[code]
    if status == 401:
        return _session_ended(Level.USE)
    if status == 403:
        return RefusedError(
            "level_too_low",
            "this pass is read-only: it cannot open connections",
            hint=f"on the head: {invite_command(Level.USE)}",
        )
    return MeshrayError("forward_failed", f"the coordinator cannot reach {where} (HTTP {status} {code})".rstrip())
