"""Ray's dashboard for programs beside this node that have no token of Ray: KubeRay's operator, and the pods of RayJobs.

    operator, submitter ──► this address:PORT ──► + Authorization: Bearer … ──► overlay address:PORT, the dashboard

    python -I -m meshray.runtime.container.dashboard_proxy RAY_DASHBOARD TOKEN_FILE PORT ADDRESS...

RAY_DASHBOARD is http://HOST:PORT. Programs that reach the port control Ray, as in every Ray without a token; the
network decides which ones reach it (a NetworkPolicy). The token is read for each connection, because it may change. A
connection carries one request, so only its head is rewritten; the rest is copied in both directions, also of a
WebSocket.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from meshray.linux.tcp_keepalive import keep_alive

#: Of a request, bytes; aiohttp, which serves the dashboard, accepts less.
_LONGEST_HEAD = 64 * 1024
_HEAD_S = 30.0
_DIAL_S = 10.0
_READ_BYTES = 64 * 1024
#: Far more than an operator and some jobs open.
_MOST_CONNECTIONS = 256
_REPLACED = (b"authorization", b"x-ray-authorization", b"cookie")
_BAD_GATEWAY = (
    "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n"
    "Ray's dashboard does not answer: {}\n"
)

#: The client is gone, or sent no request.
_GONE = (OSError, EOFError, asyncio.TimeoutError, asyncio.LimitOverrunError)
Direction = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def authorized(head: bytes, token: str) -> bytes:
    r"""Return the head of a request with Ray's token, for a connection that carries only this request (pure).

    >>> authorized(b"GET /api/version HTTP/1.1\r\nHost: head\r\nConnection: keep-alive\r\n\r\n", "x")
    b'GET /api/version HTTP/1.1\r\nHost: head\r\nConnection: close\r\nAuthorization: Bearer x\r\n\r\n'
    """
    request, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    upgrades = any(_name(line) == b"upgrade" for line in lines)
    dropped = _REPLACED if upgrades else (*_REPLACED, b"connection", b"keep-alive")
    kept = [line for line in lines if _name(line) not in dropped]
    kept += [] if upgrades else [b"Connection: close"]
    return b"\r\n".join([request, *kept, b"Authorization: Bearer " + token.encode(), b"", b""])


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].strip().lower()


class DashboardProxy:
    """The proxy of one head.

    Args:
        dashboard: where Ray's dashboard listens: host and port.
        token: the file with Ray's token; it may not exist yet.
    """

    def __init__(self, dashboard: tuple[str, int], token: Path) -> None:
        self._dashboard, self._token = dashboard, token
        self._free = asyncio.Semaphore(_MOST_CONNECTIONS)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection; it ends when the client's machine is gone."""
        keep_alive(writer.get_extra_info("socket"))
        with contextlib.closing(writer), contextlib.suppress(*_GONE):
            async with self._free:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_S)
                try:
                    token = self._token.read_text().strip()
                    answers, upstream = await asyncio.wait_for(asyncio.open_connection(*self._dashboard), _DIAL_S)
                except (OSError, asyncio.TimeoutError) as error:
                    writer.write(_BAD_GATEWAY.format(error).encode())
                    await writer.drain()
                    return
                with contextlib.closing(upstream):
                    upstream.write(authorized(head, token))
                    await _exchange((reader, upstream), (answers, writer))


async def _exchange(requests: Direction, answers: Direction) -> None:
    """Copy both directions until the answer has ended."""
    sending = asyncio.get_running_loop().create_task(_carry(*requests))
    try:
        await _carry(*answers)
    finally:
        sending.cancel()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def main(words: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    dashboard, token, port, *addresses = words
    url = urlsplit(dashboard)
    proxy = DashboardProxy((str(url.hostname), int(url.port or 0)), Path(token))
    servers = [
        await asyncio.start_server(proxy.serve, address, int(port), limit=_LONGEST_HEAD) for address in addresses
    ]
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
