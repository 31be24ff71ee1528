"""A small HTTP server for GET: one request for each connection, with limits on everything that a client can send.

aiohttp's server would take 12 MB of the agent's memory.

>>> server = HttpServer({"/metrics": page})
>>> await server.serve(listener)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)

#: A request must be complete within this, and its answer must have been read within this, seconds.
_REQUEST_S, _ANSWER_S = 5.0, 10.0
_MOST_BYTES = 8192
#: More connections at the same time than this are closed at once.
_MOST_CONNECTIONS = 16
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error"}
_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Page:
    """An answer."""

    body: bytes
    content_type: str = _PLAIN
    status: int = 200


class HttpServer:
    """The server.

    Args:
        pages: the functions that answer, by path.
    """

    def __init__(self, pages: Mapping[str, Callable[[], Awaitable[Page]]]) -> None:
        self._pages = pages
        self._open: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Answer until cancelled, which closes the listener and every connection."""
        server = await asyncio.start_server(self._accept, sock=listener, limit=_MOST_BYTES)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            for task in self._open:
                task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= _MOST_CONNECTIONS:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.TimeoutError):
            try:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _REQUEST_S)
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                writer.write(_response(Page(b"not a request\n", status=400)))
            else:
                is_head, page = await self._page(head)
                writer.write(_response(page, only_head=is_head))
            # A client that does not read is disconnected.
            await asyncio.wait_for(writer.drain(), _ANSWER_S)

    async def _page(self, head: bytes) -> tuple[bool, Page]:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return False, Page(b"not a request\n", status=400)
        method, path = words[0], words[1].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return False, Page(b"only GET\n", status=405)
        page = self._pages.get(path)
        if page is None:
            return method == "HEAD", Page(
                b"not found; there are: " + " ".join(self._pages).encode() + b"\n", status=404
            )
        try:
            return method == "HEAD", await page()
        except Exception:  # A scrape must not end the agent.
            log.exception("%s failed", path)
            return method == "HEAD", Page(b"failed; the agent's log shows why\n", status=500)


def _response(page: Page, *, only_head: bool = False) -> bytes:
    allow = "Allow: GET, HEAD\r\n" if page.status == 405 else ""
    head = (
        f"HTTP/1.1 {page.status} {_REASONS[page.status]}\r\nContent-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\n{allow}X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if only_head else page.body)
