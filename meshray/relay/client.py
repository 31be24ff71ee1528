"""The relay's side at a node: WireGuard sends to a port on loopback, from where its datagrams go to the hub.

    client = RelayClient(coordinator, hub, pause_s=backoff_s)
    endpoint = await client.open()         # WireGuard's endpoint of the hub is now 127.0.0.1:PORT
    await client.run()                     # until cancelled; the WebSocket is opened again whenever it ends
    client.close()

Meanwhile it tries UDP: a few datagrams go to the hub's real endpoint as well, before their twin goes through the
relay. WireGuard at the hub answers to where a datagram came from first and takes the twin for a replay; so where UDP
passes in both directions something comes back by UDP, and `udp_alive` is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from meshray.errors import RefusedError, UnreachableError
from meshray.model.address import Endpoint
from meshray.model.wire import WireError
from meshray.relay.frames import MIN_DATAGRAM_BYTES, FrameError, unpack
from meshray.relay.pump import Pump, keep_unsent_small
from meshray.relay.trial import Trial
from meshray.relay.udp import LOOPBACK, Address, Sender, open_loopback, receive
from meshray.runtime import inside
from meshray.runtime.tasks import Tasks

if TYPE_CHECKING:
    import aiohttp

#: What a hub's WireGuard answers with: a handshake's response, a cookie, data.
_ANSWERS = frozenset({2, 3, 4})
#: A connection that lived so long was a good one: the next is tried at once.
_GOOD_S = 10.0
#: Of what waited for the connection: the handshake that WireGuard has just begun, not the data of a minute ago.
_KEPT_BYTES = 8 * 1024

log = logging.getLogger(__name__)


class Pipe(Protocol):
    """An open WebSocket to the relay."""

    @property
    def socket(self) -> aiohttp.ClientWebSocketResponse[bool]:
        """What carries the messages."""

    async def close(self) -> None:
        """Ends it."""


class Opener(Protocol):
    """Who knows where the relay is and how to show who this node is (`meshray.agent.client.Coordinator`)."""

    async def open_relay(self) -> Pipe:
        """Raises UnreachableError where no address answers, RefusedError where this node is not accepted."""


class RelayClient:
    """See the module's text.

    Args:
        coordinator: whose port the relay shares. Its addresses must not be those of the overlay, which the relay
            carries.
        hub: where the hub's WireGuard listens, for the trials.
        pause_s: how long to wait before try number n (from 0) of opening the WebSocket again, seconds.
        tries_udp: False where the person wants the relay.

    Attributes:
        udp_alive: set once the hub has answered by UDP.
    """

    def __init__(
        self, coordinator: Opener, hub: Endpoint, *, pause_s: Callable[[int], float], tries_udp: bool = True
    ) -> None:
        self._coordinator = coordinator
        self._hub = hub
        self._pause_s = pause_s
        self._trial = Trial() if tries_udp else None
        self._pump: Pump | None = None
        self._sender: Sender | None = None
        self._wireguard: Address | None = None
        # The hub's real address, once its name is resolved; and the socket that speaks to it.
        self._outside: tuple[int, tuple[Any, ...]] | None = None
        self._udp: socket.socket | None = None
        self._pipe: Pipe | None = None
        self.udp_alive = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the relay is there now."""
        return self._pipe is not None

    async def open(self) -> Endpoint:
        """The local endpoint for WireGuard. Raises OSError where no socket can be had."""
        sock = inside.run_beside_engine(open_loopback)
        self._pump = Pump(sock, self._from_wireguard)
        self._sender = Sender(sock)
        self._pump.start()
        return Endpoint(LOOPBACK, sock.getsockname()[1])

    def close(self) -> None:
        """Closes the sockets; to be called once `run` has ended. Idempotent."""
        if self._pump is not None:
            self._pump.close()
            self._pump = None
        self._close_udp()

    def try_udp_again(self) -> None:
        """The network has changed: UDP is tried with the next datagrams."""
        self._close_udp()
        self._connect_udp()
        if self._trial is not None:
            self._trial.again()

    async def run(self) -> None:
        """Keeps the WebSocket open until cancelled.

        A refusal is waited out as well: whether this node was removed, the agent's own link is told.
        """
        attempt = 0
        while True:
            since = time.monotonic()
            try:
                await self._carry()
            except (UnreachableError, RefusedError) as error:
                (log.warning if attempt == 0 else log.debug)("the relay: %s", error)
            except (OSError, WireError) as error:
                log.warning("the relay's connection broke: %s", error)
            attempt = 0 if time.monotonic() - since > _GOOD_S else attempt + 1
            await asyncio.sleep(self._pause_s(attempt))

    async def _carry(self) -> None:
        """One connection, from its opening to its end."""
        if self._pump is None:
            raise RuntimeError("the relay's client was not opened")
        await self._open_udp()
        pipe = await self._coordinator.open_relay()
        websocket, work, ended = pipe.socket, Tasks(), asyncio.Event()
        keep_unsent_small(websocket)
        self._pump.backlog.drop_beyond(_KEPT_BYTES)
        self._pipe = pipe
        log.info("the tunnel to the hub goes through the relay")
        try:
            work.start(self._pump.run(websocket.send_bytes), "relay out")
            work.start(self._from_relay(websocket, ended), "relay in")
            await work.until(ended)
        finally:
            self._pipe = None
            await work.close()
            await pipe.close()

    async def _from_relay(self, websocket: aiohttp.ClientWebSocketResponse[bool], ended: asyncio.Event) -> None:
        async for message in websocket:
            if not isinstance(message.data, bytes):
                raise FrameError("the relay sent text")
            self._to_wireguard(unpack(message.data))
        log.info("the relay closed the connection (code %s)", websocket.close_code)
        ended.set()

    def _to_wireguard(self, datagrams: Sequence[memoryview]) -> None:
        if self._sender is not None and self._wireguard is not None:
            self._sender.send(datagrams, self._wireguard)

    # ---- UDP beside the relay

    def _from_wireguard(self, datagrams: Sequence[bytes], source: Address) -> None:
        self._wireguard = source
        if self._udp is None or self._trial is None:
            return
        # While there is no relay nothing is lost by trying, and a handshake is all there is to send.
        allowed = self._trial.allows(len(datagrams), time.monotonic()) if self.connected else len(datagrams)
        for datagram in datagrams[:allowed]:
            with contextlib.suppress(OSError):
                self._udp.send(datagram)

    async def _open_udp(self) -> None:
        if self._udp is not None or self._trial is None:
            return
        # Behind a proxy names are often resolved by the proxy alone; then there is no UDP either.
        with contextlib.suppress(OSError):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(self._hub.host, self._hub.port, type=socket.SOCK_DGRAM)
            self._outside = found[0][0], found[0][4]
            self._connect_udp()

    def _connect_udp(self) -> None:
        if self._outside is None:
            return
        family, address = self._outside
        udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            udp.connect(address)
        except OSError:
            # No route there: a laptop between two networks.
            udp.close()
            return
        self._udp = udp
        asyncio.get_running_loop().add_reader(udp, self._from_udp)

    def _from_udp(self) -> None:
        if self._udp is None:
            return
        datagrams = [datagram for datagram in receive(self._udp)[0] if _is_answer(datagram)]
        if datagrams:
            self.udp_alive.set()
            self._to_wireguard([memoryview(datagram) for datagram in datagrams])

    def _close_udp(self) -> None:
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp)
            self._udp.close()
            self._udp = None


def _is_answer(datagram: bytes) -> bool:
    return len(datagram) >= MIN_DATAGRAM_BYTES and datagram[0] in _ANSWERS
