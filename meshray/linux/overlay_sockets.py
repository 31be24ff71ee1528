"""Sockets of the overlay for other processes of this node, where the overlay is in its own network namespace.

A socket belongs to the namespace in which it was created, also when another process connects it. So the agent, one of
whose threads is inside, passes new sockets over a Unix socket (SCM_RIGHTS), and the other process connects them itself:
no byte of their traffic passes the agent.

    the agent:        server = SocketServer(home.overlay_socket);  await server.run()
    another process:  stream = await borrow(home.overlay_socket);  await loop.sock_connect(stream, ("10.99.0.2", 22))
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from pathlib import Path

from meshray.linux import overlay_netns
from meshray.linux.peer_credentials import peer_credentials

#: The agent answers at once, seconds.
_TIMEOUT_S = 3.0
_PAUSE_S = 0.2
#: One byte accompanies the descriptor, because an empty message carries none.
_MESSAGE = b"\0"

_log = logging.getLogger(__name__)


class SocketServer:
    """Passes a new TCP socket of the overlay to each process of this user, or of root, that connects.

    Args:
        path: of the Unix socket; one that a killed agent left is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def run(self) -> None:
        """Serve until cancelled."""
        loop = asyncio.get_running_loop()
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listening:
            before = os.umask(0o177)
            try:
                listening.bind(str(self._path))
            finally:
                os.umask(before)
            listening.listen(64)
            try:
                while True:
                    try:
                        client, _ = await loop.sock_accept(listening)
                    except OSError as error:
                        _log.warning("a request for a socket of the overlay could not be accepted: %s", error)
                        await asyncio.sleep(_PAUSE_S)
                        continue
                    with client, contextlib.suppress(OSError):
                        self._pass_socket(client)
            finally:
                self._path.unlink(missing_ok=True)

    @staticmethod
    def _pass_socket(client: socket.socket) -> None:
        if peer_credentials(client).uid not in (0, os.geteuid()):
            return
        with overlay_netns.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as stream:
            # It fits into the buffer of a new connection, so this does not block.
            socket.send_fds(client, [_MESSAGE], [stream.fileno()])


async def borrow(path: Path) -> socket.socket:
    """Return a new TCP socket of the overlay, which is not connected yet and does not block.

    Raises:
        OSError: the agent does not answer.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as agent:
        await asyncio.wait_for(loop.sock_connect(agent, str(path)), _TIMEOUT_S)
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(agent, lambda: None if readable.done() else readable.set_result(None))
        try:
            await asyncio.wait_for(readable, _TIMEOUT_S)
        finally:
            loop.remove_reader(agent)
        _, descriptors, _, _ = socket.recv_fds(agent, len(_MESSAGE), 1)
    if not descriptors:
        raise OSError(errno.EACCES, "the agent passes sockets to its own user and to root only")
    stream = socket.socket(fileno=descriptors[0])
    stream.setblocking(False)
    os.set_inheritable(stream.fileno(), False)
    return stream
