"""Accept TLS connections, with a limit for unfinished handshakes.

asyncio's own server accepts without limit. Here, with too many unfinished handshakes, further connections wait in the
kernel until one is done. Handshakes that take long give way to them, and so do those of a source that has more than its
share: after a restart thousands of agents come at once, and none of them loses its place to the next.

>>> listener = Listener(bound_sockets, context, lambda: limits.wrap(http_server()))
>>> listener.start()
>>> await listener.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable, Sequence

from meshray.coordinator.fair_limit import FairLimit, source_of
from meshray.linux.tasks import Tasks

#: The number of connections that may wait to be accepted: after a restart all nodes come at once.
BACKLOG = 4096
HANDSHAKE_S = 10.0
#: An unfinished handshake keeps its place for so long, seconds.
STUCK_S = 1.0
MAX_HANDSHAKES = 256
#: The buffer of each TLS connection for what it receives, bytes: one record (RFC 8446, section 5.1). asyncio takes
#: 256 KiB for each connection, and clears all of it.
TLS_BUFFER_BYTES = 16 * 1024
#: No descriptor or no memory is left: existing connections must end first.
_RETRY_S = 0.2

_log = logging.getLogger(__name__)


class Listener:
    """A listener that passes every connection with a successful handshake to a protocol.

    Args:
        sockets: bound, but not listening yet; the listener closes them.
        max_handshakes: the number of concurrent handshakes.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        context: ssl.SSLContext,
        protocol: Callable[[], asyncio.BaseProtocol],
        max_handshakes: int = MAX_HANDSHAKES,
    ) -> None:
        self._sockets = sockets
        self._context = context
        self._protocol = protocol
        self._tasks = Tasks()
        self._max_handshakes = max_handshakes
        self._handshakes = FairLimit[asyncio.Task[None]](None, asyncio.Task.cancel)
        self._began: dict[asyncio.Task[None], float] = {}
        self._done = asyncio.Event()

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._sockets[0].getsockname()[1])

    def start(self) -> None:
        """Begin to accept connections."""
        _use_small_tls_buffers()
        for listening in self._sockets:
            listening.setblocking(False)
            listening.listen(BACKLOG)
            self._tasks.start(self._accept(listening), "accept")

    async def close(self) -> None:
        """Stop accepting and abort unfinished handshakes; established connections continue."""
        await self._tasks.close()
        for listening in self._sockets:
            listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:
                _log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            task = self._tasks.start(self._shake_hands(connection), "handshake")
            self._handshakes.add(task, source_of(str(address[0])))
            self._began[task] = loop.time()
            task.add_done_callback(self._forget)
            # sock_accept returns at once while connections wait: the handshakes would not progress meanwhile.
            await asyncio.sleep(0)
            await self._until_there_is_room()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        self._began.pop(task, None)
        self._done.set()

    async def _until_there_is_room(self) -> None:
        while len(self._handshakes) > self._max_handshakes:
            oldest, is_unfair = self._handshakes.unfairest()
            left_s = self._began[oldest] + STUCK_S - asyncio.get_running_loop().time()
            if is_unfair or left_s <= 0:
                self._handshakes.evict(oldest)
                continue
            self._done.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._done.wait(), left_s)

    async def _shake_hands(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError as error:
            # Scanners and half-open connections are normal. SSLError is an OSError.
            _log.debug("a handshake failed: %s", error)
        except asyncio.CancelledError:
            connection.close()
            raise


def _use_small_tls_buffers() -> None:
    # Python 3.10 has no such buffer.
    if hasattr(sslproto.SSLProtocol, "max_size"):
        sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES
