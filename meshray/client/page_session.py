"""A session of the coordinator's page for a program: a pass is exchanged once, and its session is kept in a file.

    https://HEAD:51888/enter#PASS.FINGERPRINT ──POST /enter──► cookie ──► file ──► /tcp/NODE/PORT

>>> session = await open_session(PageUrl.parse(url), folder)
>>> tunnel = await session.tunnel("gpu-1", 8350)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from meshray.client.dialer import CONNECT_TIMEOUT_S, describe
from meshray.errors import MeshrayError, RefusedError, UnreachableError, UsageError
from meshray.linux.files import make_folder, write_atomically
from meshray.model.address import Endpoint
from meshray.protocol.tunnel import EOF, ERROR_HEADER, MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import aiohttp

_URL_HINT = "the whole line that meshray web invite NAME --use prints, between quotes"
_SECRET = re.compile(r"([A-Za-z0-9_-]{20,128})\.([0-9a-f]{64})")
_MAX_FILE_BYTES = 4096
_HANDSHAKE_S = 20.0
_CLOSE_S = 2.0


@dataclass(frozen=True)
class PageUrl:
    """The URL that `meshray web invite` prints.

    Attributes:
        secret: of the pass.
        fingerprint: SHA-256 of the coordinator's certificate; no other is trusted.
    """

    endpoint: Endpoint
    secret: str = field(repr=False)
    fingerprint: bytes

    @classmethod
    def parse(cls, text: str) -> PageUrl:
        """Return the parts of the URL. Raises UsageError ``bad_pass``, which does not contain the secret."""
        bad = UsageError("bad_pass", "the pass is not a URL of the form https://HEAD:PORT/enter#…", hint=_URL_HINT)
        try:
            parts = urlsplit(text.strip())
            found = _SECRET.fullmatch(unquote(parts.fragment))
            if parts.scheme != "https" or parts.path != "/enter" or not parts.netloc or found is None:
                raise bad
            endpoint = Endpoint.parse(parts.netloc, 443)
        except (ValueError, UsageError):
            raise bad from None
        return cls(endpoint, found[1], bytes.fromhex(found[2]))


@dataclass(frozen=True)
class PageSession:
    """A session, as stored in its file.

    Attributes:
        cookie: its name and value.
    """

    endpoint: Endpoint
    fingerprint: bytes
    cookie: str = field(repr=False)

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

        session = _client()
        try:
            socket = await session.ws_connect(
                f"{self.origin}/tcp/{node}/{port}",
                headers={"Cookie": self.cookie, "Origin": self.origin},
                ssl=aiohttp.Fingerprint(self.fingerprint),
                max_msg_size=MAX_MESSAGE_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError as error:
            await session.close()
            code = error.headers.get(ERROR_HEADER, "") if error.headers is not None else ""
            raise _refused(error.status, code, node, port) from None
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            await session.close()
            raise _unreachable(self.endpoint, error) from None
        except BaseException:
            await session.close()
            raise
        return WebTunnel(session, socket)


class WebTunnel:
    """One TCP connection in a WebSocket."""

    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._session = session
        self._socket = socket

    async def read(self) -> AsyncIterator[bytes]:
        """Yield what arrives until the other side ends its direction. Raises ConnectionError if it broke off."""
        import aiohttp

        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                yield message.data
            elif message.type is aiohttp.WSMsgType.TEXT and message.data == EOF:
                return
            else:
                raise ConnectionResetError("the tunnel ended")

    async def write(self, data: bytes) -> None:
        """Send bytes, once the other side has read enough of the previous ones. Raises ConnectionError."""
        await self._socket.send_bytes(data)

    async def write_eof(self) -> None:
        """End this direction. Raises ConnectionError."""
        await self._socket.send_str(EOF)

    async def close(self) -> None:
        """Close both directions."""
        try:
            await self._socket.close()
        finally:
            await self._session.close()


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
        return PageSession(url.endpoint, url.fingerprint, kept.cookie)
    created = PageSession(url.endpoint, url.fingerprint, await _exchange(url))
    make_folder(folder)
    text = {"endpoint": str(created.endpoint), "fingerprint": created.fingerprint.hex(), "cookie": created.cookie}
    write_atomically(file, json.dumps(text))
    return created


def kept_sessions(folder: Path) -> list[PageSession]:
    """Return all sessions in the folder; some may have ended."""
    found = [_read(file) for file in sorted(folder.glob("*.json"))[:64]] if folder.is_dir() else []
    return [session for session in found if session is not None]


def delete_session(folder: Path, session: PageSession) -> None:
    """Delete the file of a session that has ended."""
    for file in folder.glob("*.json"):
        if (kept := _read(file)) is not None and kept.cookie == session.cookie:
            file.unlink(missing_ok=True)


async def _exchange(url: PageUrl) -> str:
    """Return the cookie of a new session."""
    import aiohttp

    origin = f"https://{url.endpoint}"
    async with _client() as client:
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
            raise _unreachable(url.endpoint, error) from None
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
        hint="on the head: meshray web invite NAME --use",
    )


def _read(file: Path) -> PageSession | None:
    try:
        with file.open() as opened:
            value = json.loads(opened.read(_MAX_FILE_BYTES))
        fingerprint = bytes.fromhex(value["fingerprint"])
        return PageSession(Endpoint.parse(value["endpoint"]), fingerprint, str(value["cookie"]))
    except (OSError, ValueError, KeyError, TypeError, MeshrayError):
        return None


def _client() -> aiohttp.ClientSession:
    import aiohttp

    from meshray.client.resolver import Resolver

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=Resolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=_HANDSHAKE_S, sock_connect=CONNECT_TIMEOUT_S),
        trust_env=True,
    )


def _unreachable(endpoint: Endpoint, error: Exception) -> MeshrayError:
    import aiohttp

    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return RefusedError(
            "certificate_other",
            f"{endpoint} shows another certificate than the one that this pass is for; nothing was sent",
            hint="on the head: meshray web invite NAME --use",
        )
    return UnreachableError(
        "coordinator_unreachable",
        f"the coordinator does not answer ({endpoint}: {describe(error)})",
        hint="on the head: meshray status",
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
        return RefusedError(
            "session_ended",
            "the session of this pass has ended",
            hint="on the head: meshray web invite NAME --use",
        )
    if status == 403:
        return RefusedError(
            "level_too_low",
            "this pass is read-only: it cannot open connections",
            hint="on the head: meshray web invite NAME --use",
        )
    return MeshrayError("forward_failed", f"the coordinator cannot reach {where} (HTTP {status} {code})".rstrip())
