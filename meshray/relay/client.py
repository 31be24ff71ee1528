"""The relay's side at a node: WireGuard sends to a port on loopback, from where its datagrams go to the hub.

    client = RelayClient(lambda: coordinator, lambda: hub, pause_s=backoff_s)
    endpoint = await client.open()         # WireGuard's endpoint of the hub is now 127.0.0.1:PORT
    await client.run()                     # until cancelled; the WebSocket is opened again whenever it ends
    client.close()

Meanwhile it tries UDP when it is told to: a few large data packets go to the hub's real endpoint as well, before their
twin goes through the relay. WireGuard at the hub answers to where a packet came from first and takes the twin for a
replay. So where data comes back by UDP, large data passes in one direction and data in the other, and `udp_alive` is
set. Handshakes prove neither, and take no part while the relay is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from meshray.errors import RefusedError, UnreachableError
from meshray.linux import overlay_netns
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.protocol.codec import WireError
from meshray.relay.frames import MIN_DATAGRAM_BYTES, FrameError, unpack
from meshray.relay.pump import Pump, keep_unsent_small
from meshray.relay.trial import Trial
from meshray.relay.udp import LOOPBACK, Address, Sender, open_loopback, receive

if TYPE_CHECKING:
    import aiohttp

#: What a hub's WireGuard answers with: a handshake's response, a cookie, data.
_DATA = 4
_ANSWERS = frozenset({2, 3, _DATA})
#: An inner packet of the smallest size that a path may have (1200 bytes), as WireGuard sends it.
LARGE_BYTES = 1232
#: What comes by UDP so long after a trial answers it, seconds.
_ANSWER_S = 2.0
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
    """Who knows where the relay is and how to show who this node is (`meshray.client.coordinator.Coordinator`)."""

    async def open_relay(self) -> Pipe:
        """Raises UnreachableError where no address answers, RefusedError where this node is not accepted."""


class RelayClient:
    """See the module's text.

    Args:
        coordinator: whose port the relay shares, asked for before each try: it may move. Its addresses must not be
            those of the overlay, which the relay carries.
        hub: where the hub's WireGuard listens, for the trials: an address; None while none is known, for example
            because a name does not resolve. Behind a proxy names are often resolved by the proxy alone.
        pause_s: how long to wait before try number n (from 0) of opening the WebSocket again, seconds.
        tries_udp: False where the user wants the relay.

    Attributes:
        udp_alive: set once data has passed by UDP in both directions, in a trial since the last `begin_trial`.
    """

    def __init__(
        self,
        coordinator: Callable[[], Opener],
        hub: Callable[[], Endpoint | None],
        *,
        pause_s: Callable[[int], float],
        tries_udp: bool = True,
    ) -> None:
        self._coordinator = coordinator
        self._hub = hub
        self._pause_s = pause_s
        self._trial = Trial() if tries_udp else None
        self._pump: Pump | None = None
        self._sender: Sender | None = None
        self._wireguard: Address | None = None
        # Speaks to the hub's real address.
        self._udp: socket.socket | None = None
        self._pipe: Pipe | None = None
        self._tried_at = float("-inf")
        self.udp_alive = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the relay is there now."""
        return self._pipe is not None

    async def open(self) -> Endpoint:
        """The local endpoint for WireGuard. Raises OSError where no socket can be had."""
        sock = overlay_netns.run_beside_engine(open_loopback)
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
        """The network has changed: the next trial may begin at once."""
        self._close_udp()
        self._open_udp()
        if self._trial is not None:
            self._trial.again()

    @property
    def trial_is_due(self) -> bool:
        """Whether `begin_trial` should be called."""
        if self._trial is None or not self._trial.is_due(time.monotonic()):
            return False
        self._open_udp()
        return self._udp is not None

    def begin_trial(self) -> None:
        """For a moment large data packets go by UDP as well; the caller sends some."""
        self.udp_alive.clear()
        if self._trial is not None:
            self._trial.begin(time.monotonic())

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
        self._open_udp()
        pipe = await self._coordinator().open_relay()
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
        # While there is no relay nothing is lost by trying, and a handshake may be all there is to send.
        if self.connected:
            datagrams = [datagram for datagram in datagrams if len(datagram) >= LARGE_BYTES and datagram[0] == _DATA]
            datagrams = datagrams[: self._trial.allows(len(datagrams), time.monotonic())]
            if datagrams:
                self._tried_at = time.monotonic()
        for datagram in datagrams:
            with contextlib.suppress(OSError):
                self._udp.send(datagram)

    def _open_udp(self) -> None:
        if self._udp is not None or self._trial is None:
            return
        hub = self._hub()
        if hub is None or hub.ip is None:
            return
        family = socket.AF_INET if hub.ip.version == 4 else socket.AF_INET6
        udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            udp.connect((hub.host, hub.port))
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
            tried = self.connected and time.monotonic() - self._tried_at < _ANSWER_S
            if tried and any(datagram[0] == _DATA for datagram in datagrams):
                self.udp_alive.set()
            self._to_wireguard([memoryview(datagram) for datagram in datagrams])

    def _close_udp(self) -> None:
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp)
            self._udp.close()
            self._udp = None


def _is_answer(datagram: bytes) -> bool:
    return len(datagram) >= MIN_DATAGRAM_BYTES and datagram[0] in _ANSWERS
