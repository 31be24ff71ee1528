"""The relay's client on a node: WireGuard sends to a loopback port, and the client carries its datagrams to the hub.

    client = RelayClient(lambda: coordinator, lambda: hub, pause_s=backoff_s)
    endpoint = await client.open()         # WireGuard's endpoint of the hub is now 127.0.0.1:PORT
    await client.run()                     # until cancelled; the WebSocket is reopened whenever it closes
    client.close()

During a trial the client also sends a few large data packets to the hub's UDP endpoint, before their copies go through
the relay. WireGuard at the hub answers to the source of the first packet and discards the copy as a replay. If data
returns over UDP, large packets pass in one direction and data in the other, and `udp_alive` is set. Handshakes prove
neither, so they are not duplicated while the relay is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from meshray.errors import RefusedError, UnreachableError
from meshray.linux import overlay_netns
from meshray.model.address import Endpoint
from meshray.protocol.connection import CLOSE_ENDING
from meshray.relay.frames import FORM_HEADER, GROUPS, MIN_DATAGRAM_BYTES, Group, runs, split
from meshray.relay.pump import Pump
from meshray.relay.udp import LOOPBACK, Address, open_loopback, receive
from meshray.relay.udp_trial import Trial

#: The types of a hub's answers: handshake response, cookie, data.
_DATA = 4
_ANSWERS = frozenset({2, 3, _DATA})
#: WireGuard's datagram for an inner packet of the smallest path MTU (1200 bytes).
LARGE_BYTES = 1232
#: A datagram that arrives by UDP within this time after a trial is its answer, seconds.
_ANSWER_S = 2.0
#: After a connection of this length the next one is tried at once, seconds.
_GOOD_S = 10.0
#: The part of the backlog that is kept when a connection opens: WireGuard's latest handshake, not old data.
_KEPT_BYTES = 8 * 1024

log = logging.getLogger(__name__)


class RelayConnection(Protocol):
    """A WebSocket to the relay whose handshake is done."""

    @property
    def transport(self) -> asyncio.Transport:
        """The connection, for `meshray.relay.relay_websocket`."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the server's answer; `meshray.relay.frames.FORM_HEADER` is one."""

    async def close(self) -> None:
        """Close the connection and what belongs to it."""


class Opener(Protocol):
    """Opens authenticated connections to the relay (`meshray.client.coordinator.Coordinator`)."""

    async def open_relay(self) -> RelayConnection:
        """Open one. Raises UnreachableError if no address answers, RefusedError if this node is refused."""


class RelayClient:
    """The relay's client; see the module's docstring.

    Args:
        coordinator: returns the coordinator, which has the relay's port. It is called before each attempt, because the
            address may change. Addresses in the overlay are not allowed, because the relay carries the overlay.
        hub: returns the endpoint of the hub's WireGuard for the trials, or None if it is unknown, for example
            because only the proxy resolves the name.
        pause_s: returns the pause before attempt n (from 0) to reopen the WebSocket, seconds.
        tries_udp: False if the user chose the relay.

    Attributes:
        udp_alive: set when data has passed over UDP in both directions in the current trial.
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
        # The socket to the hub's UDP endpoint.
        self._udp: socket.socket | None = None
        self._connection: RelayConnection | None = None
        self._trial_sent_at = float("-inf")
        self.udp_alive = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the relay is connected."""
        return self._connection is not None

    async def open(self) -> Endpoint:
        """Open the local socket and return its endpoint for WireGuard. Raises OSError if no socket is available."""
        sock = overlay_netns.run_in_engine_namespace(open_loopback)
        self._pump = Pump(sock, self._from_wireguard)
        self._pump.start()
        return Endpoint(LOOPBACK, sock.getsockname()[1])

    def close(self) -> None:
        """Close the sockets, after `run` has ended. Idempotent."""
        if self._pump is not None:
            self._pump.close()
            self._pump = None
        self._close_udp()

    def try_udp_again(self) -> None:
        """Allow a trial at once, because the network has changed."""
        self._close_udp()
        self._open_udp()
        if self._trial is not None:
            self._trial.reset()

    @property
    def trial_is_due(self) -> bool:
        """Whether `begin_trial` should be called."""
        if self._trial is None or not self._trial.is_due(time.monotonic()):
            return False
        self._open_udp()
        return self._udp is not None

    def begin_trial(self) -> None:
        """Send large data packets over UDP as well for a moment. The caller sends some packets."""
        self.udp_alive.clear()
        if self._trial is not None:
            self._trial.begin(time.monotonic())

    async def run(self) -> None:
        """Keep the WebSocket open until cancelled.

        A refusal is retried too: the agent's own connection learns whether this node was removed.
        """
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                await self._carry()
            except (UnreachableError, RefusedError) as error:
                (log.warning if attempt == 0 else log.debug)("the relay: %s", error)
            except OSError as error:
                log.warning("the relay's connection broke: %s", error)
            attempt = 0 if time.monotonic() - started > _GOOD_S else attempt + 1
            await asyncio.sleep(self._pause_s(attempt))

    async def _carry(self) -> None:
        """Run one connection until it closes."""
        if self._pump is None:
            raise RuntimeError("the relay's client was not opened")
        self._open_udp()
        connection = await self._coordinator().open_relay()
        self._pump.backlog.drop_beyond(_KEPT_BYTES)
        in_groups = connection.headers.get(FORM_HEADER) == GROUPS
        websocket = self._pump.carry(connection.transport, in_groups=in_groups, is_client=True)
        self._connection = connection
        log.info("the tunnel to the hub uses the relay")
        try:
            await websocket.wait_closing()
            ended = websocket.error or f"code {websocket.close_code}"
            log.info("the connection to the relay was closed (%s)", ended)
        finally:
            self._connection = None
            self._pump.release()
            try:
                await websocket.close(CLOSE_ENDING)
            finally:
                await connection.close()

    # ---- UDP beside the relay

    def _from_wireguard(self, groups: Sequence[Group], source: Address) -> None:
        if self._pump is not None:
            self._pump.wireguard = source
        if self._udp is None or self._trial is None:
            return
        now = time.monotonic()
        # Without a relay a trial costs nothing, and handshakes may be the only datagrams.
        if self.connected and not self._trial.is_running(now):
            return
        datagrams = [datagram for group in groups for datagram in split(group)]
        if self.connected:
            datagrams = [datagram for datagram in datagrams if len(datagram) >= LARGE_BYTES and datagram[0] == _DATA]
            datagrams = datagrams[: self._trial.allows(len(datagrams), now)]
            if datagrams:
                self._trial_sent_at = now
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
            # There is no route, for example while a laptop changes networks.
            udp.close()
            return
        self._udp = udp
        asyncio.get_running_loop().add_reader(udp, self._from_udp)

    def _from_udp(self) -> None:
        if self._udp is None:
            return
        received = [datagram for group in receive(self._udp)[0] for datagram in split(group)]
        answers = [datagram for datagram in received if _is_answer(datagram)]
        if answers:
            in_trial = self.connected and time.monotonic() - self._trial_sent_at < _ANSWER_S
            if in_trial and any(datagram[0] == _DATA for datagram in answers):
                self.udp_alive.set()
            if self._pump is not None and self._pump.wireguard is not None:
                self._pump.sender.send(runs(answers), self._pump.wireguard)

    def _close_udp(self) -> None:
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp)
            self._udp.close()
            self._udp = None


def _is_answer(datagram: memoryview) -> bool:
    return len(datagram) >= MIN_DATAGRAM_BYTES and datagram[0] in _ANSWERS
