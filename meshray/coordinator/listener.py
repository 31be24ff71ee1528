"""Accept TLS connections, with a limit for unfinished handshakes.

asyncio's own server accepts without limit, and every connection takes a quarter of a megabyte before it has sent
anything. Here, with too many unfinished handshakes, the source that has most of them loses its oldest one.

>>> listener = Listener(bound_sockets, context, lambda: limits.wrap(http_server()))
>>> listener.start()
>>> await listener.close()
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence

from meshray.coordinator.fair_limit import FairLimit, source_of
from meshray.linux.tasks import Tasks

#: The number of connections that may wait to be accepted: after a restart all nodes come at once.
BACKLOG = 1024
HANDSHAKE_S = 10.0
MAX_HANDSHAKES = 256
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
        self._handshakes = FairLimit[asyncio.Task[None]](max_handshakes, asyncio.Task.cancel)

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._sockets[0].getsockname()[1])

    def start(self) -> None:
        """Begin to accept connections."""
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
            task.add_done_callback(self._handshakes.discard)
            # sock_accept returns at once while connections wait: the handshakes would not progress meanwhile.
            await asyncio.sleep(0)

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
