"""Ports of the overlay on this machine's own loopback, for a node whose overlay is in its own network namespace.

    http://127.0.0.1:8265      ──► the head's dashboard
    ray://127.0.0.1:10001      ──► Ray Client
    coordinator's node only: its overlay address ──► the coordinator, which listens outside

If a port is in use, the next free one is used and reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address

from meshray.linux import overlay_netns
from meshray.model.ray_ports import RayPorts

log = logging.getLogger(__name__)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_LOOPBACK = IPv4Address("127.0.0.1")
#: The number of ports to try, one after the other.
_MAX_ATTEMPTS = 100
_READ_BYTES = 1 << 18
#: Longer than a connection to a running head takes, seconds.
_DIAL_S = 10.0


class Forwards:
    """The forwarded ports of one node.

    Args:
        head: returns the address of Ray's head; None if there is none yet.
        coordinator: (own overlay address, port) if this node runs the coordinator.
        ports: the ports of the head's Ray; the loopback uses the same ones if they are free.
    """

    def __init__(
        self,
        head: Callable[[], IPv4Address | None],
        coordinator: tuple[IPv4Address, int] | None = None,
        *,
        ports: RayPorts = RayPorts(),  # noqa: B008 - frozen
    ) -> None:
        self._head = head
        self._coordinator = coordinator
        self._ports = ports
        self.dashboard = self.client = 0

    def urls(self) -> dict[str, str]:
        """Return the URLs that a user can open on this machine, once `run` has begun."""
        found = {"dashboard": f"http://127.0.0.1:{self.dashboard}"} if self.dashboard else {}
        return {**found, "ray_client": f"ray://127.0.0.1:{self.client}"} if self.client else found

    async def run(self) -> None:
        """Forward until cancelled, which ends every connection. A port that is not available does not end it."""
        connections: set[asyncio.Task[None]] = set()
        servers = []
        ports = self._ports
        dashboard, client = _free_listener(ports.dashboard), _free_listener(ports.ray_client_server)
        self.dashboard, self.client = _port_of(dashboard), _port_of(client)
        try:
            for listener, port in ((dashboard, ports.dashboard), (client, ports.ray_client_server)):
                if listener is not None:
                    servers.append(await _serve(listener, self._to_head(port), connections))
            if self._coordinator is not None:
                ip, port = self._coordinator
                listener = await asyncio.to_thread(overlay_netns.listener, ip, port)
                servers.append(await _serve(listener, lambda: asyncio.open_connection("127.0.0.1", port), connections))
            await asyncio.Event().wait()
        finally:
            for server in servers:
                server.close()
            for connection in connections:
                connection.cancel()

    def _to_head(self, port: int) -> Callable[[], Awaitable[Streams]]:
        async def dial() -> Streams:
            head = self._head()
            if head is None:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "this mesh has no Ray head")
            return await overlay_netns.open_connection(head, port)

        return dial


def _free_listener(preferred: int) -> socket.socket | None:
    for port in range(preferred, preferred + _MAX_ATTEMPTS):
        with contextlib.suppress(OSError):
            listener = socket.create_server((str(_LOOPBACK), port))
            if port != preferred:
                log.warning("port %d of 127.0.0.1 is taken: %d is used instead", preferred, port)
            return listener
    log.error("no port of 127.0.0.1 from %d on is free: it is not forwarded", preferred)
    return None


def _port_of(listener: socket.socket | None) -> int:
    return int(listener.getsockname()[1]) if listener is not None else 0


async def _serve(
    listener: socket.socket, dial: Callable[[], Awaitable[Streams]], connections: set[asyncio.Task[None]]
) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(_relay((reader, writer), dial))
        connections.add(task)
        task.add_done_callback(connections.discard)

    return await asyncio.start_server(serve, sock=listener)


async def _relay(near: Streams, dial: Callable[[], Awaitable[Streams]]) -> None:
    """Copy both directions until both have ended, or one end is gone."""
    with contextlib.closing(near[1]), contextlib.suppress(OSError, asyncio.TimeoutError):
        far = await asyncio.wait_for(dial(), _DIAL_S)
        with contextlib.closing(far[1]):
            await asyncio.gather(_copy(near[0], far[1]), _copy(far[0], near[1]))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_READ_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
