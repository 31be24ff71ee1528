"""Round trips over the overlay: one small UDP packet to a peer and back.

    ping  b"mr" 1 <8 random bytes> <1: I hear you> <padding>   ──►   the peer's agent
    pong  b"mr" 2 <the same bytes> <1: I hear you>             ◄──

On the node's own address a probe takes the way that data takes; on its probe address the direct way
alone. The overlay authenticates the sender, so the packets need no secret of their own.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from statistics import median
from typing import cast

from meshray.agent.paths.mtu import dont_fragment
from meshray.runtime import inside
from meshray.settings import PROBE_PORT

_PING, _PONG = b"mr\x01", b"mr\x02"
_NONCE_BYTES = 8
_LENGTH = len(_PING) + _NONCE_BYTES + 1
#: IPv4 and UDP around a probe, bytes: a probe of an inner size has so much less payload.
_HEADERS_BYTES = 28
#: An answer later than this counts as lost.
TIMEOUT_S = 2.0
#: Each peer is asked this often over the way that data takes.
INTERVAL_S = 30.0
#: How soon a new peer is noticed.
_LOOK_S = 1.0
#: A lost probe is repeated so soon.
_AGAIN_S = 3.0
#: How many of the last probes a median and a loss are made from.
WINDOW = 8


@dataclass
class Measured:
    """The last probes of one peer: round trips in milliseconds, None for a lost one."""

    samples: deque[float | None] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def rtt_ms(self) -> float | None:
        """Median of those that came back."""
        heard = [sample for sample in self.samples if sample is not None]
        return round(median(heard), 3) if heard else None

    @property
    def loss(self) -> float | None:
        """Share of those that did not."""
        return round(sum(sample is None for sample in self.samples) / len(self.samples), 3) if self.samples else None

    @property
    def silent(self) -> bool:
        """Whether the last probes, more than one, were all lost."""
        return len(self.samples) > 1 and list(self.samples)[-2:] == [None, None]


@dataclass(frozen=True)
class Answer:
    """A probe that came back.

    Attributes:
        peer_hears: the peer's probes to us come back as well.
    """

    rtt_ms: float
    peer_hears: bool


def _deaf(peer: IPv4Address, hears_us: bool) -> bool:
    return False


class Echo(asyncio.DatagramProtocol):
    """Asks and answers on one address.

    Args:
        on_ping: told of each peer's ping and whether that peer hears us; returns whether we hear it.
    """

    def __init__(self, on_ping: Callable[[IPv4Address, bool], bool] = _deaf) -> None:
        self.on_ping = on_ping
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: dict[bytes, asyncio.Future[bool]] = {}
        self._heard: dict[IPv4Address, float] = {}

    async def open(self, address: IPv4Address) -> None:
        """Listens on this address. Raises OSError where it cannot be bound."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, sock=inside.udp(address, PROBE_PORT))

    def close(self) -> None:
        """Ends listening."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    async def ask(self, peer: IPv4Address, timeout_s: float, *, hears: bool = False, size: int = 0) -> Answer | None:
        """One round trip, None where no answer came in time.

        Args:
            hears: told to the peer.
            size: bytes of the whole inner packet on its way there; the answer is small.
        """
        if self._transport is None:
            return None
        nonce = secrets.token_bytes(_NONCE_BYTES)
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[nonce] = answered
        ping = (_PING + nonce + bytes([hears])).ljust(max(0, size - _HEADERS_BYTES), b"\0")
        sent = time.perf_counter()
        try:
            self._transport.sendto(ping, (str(peer), PROBE_PORT))
            peer_hears = await asyncio.wait_for(answered, timeout_s)
        except (asyncio.TimeoutError, OSError):
            return None
        finally:
            del self._waiting[nonce]
        return Answer(round((time.perf_counter() - sent) * 1000, 3), peer_hears)

    def heard_ago_s(self, peer: IPv4Address) -> float | None:
        """Since the peer last asked, None where it never did."""
        heard = self._heard.get(peer)
        return None if heard is None else time.monotonic() - heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is open."""
        # Promised by create_datagram_endpoint; no base class says so before Python 3.12.
        self._transport = cast(asyncio.DatagramTransport, transport)
        dont_fragment(transport.get_extra_info("socket"))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """asyncio: a packet came."""
        if len(data) < _LENGTH or self._transport is None:
            return
        kind, nonce, hears_us = data[: len(_PING)], data[len(_PING) : _LENGTH - 1], bool(data[_LENGTH - 1])
        if kind == _PING:
            self._heard[IPv4Address(addr[0])] = time.monotonic()
            hears = self.on_ping(IPv4Address(addr[0]), hears_us)
            self._transport.sendto(_PONG + nonce + bytes([hears]), addr)
        elif kind == _PONG and nonce in self._waiting and not self._waiting[nonce].done():
            self._waiting[nonce].set_result(hears_us)


class Prober:
    """This node's echoes: over the way that data takes, and over the direct way."""

    def __init__(self) -> None:
        self.direct = Echo()
        self._data = Echo()
        self._measured: dict[IPv4Address, Measured] = {}

    async def open(self, address: IPv4Address, probe_address: IPv4Address) -> None:
        """Listens on both addresses of this node. Raises OSError where one cannot be bound."""
        await self._data.open(address)
        await self.direct.open(probe_address)

    def close(self) -> None:
        """Ends listening."""
        self._data.close()
        self.direct.close()

    def measured(self, peer: IPv4Address) -> Measured:
        """What is known of this peer; empty for one that was never probed."""
        return self._measured.get(peer, Measured())

    def remember(self, peer: IPv4Address, rtt_ms: float | None) -> None:
        """Adds one probe of the way that data takes; None: it did not come back."""
        self._measured.setdefault(peer, Measured()).samples.append(rtt_ms)

    def way_changed(self, peer: IPv4Address) -> None:
        """Data takes another way to this peer: what was measured was measured on the old one."""
        self._measured.pop(peer, None)

    def heard_ago_s(self, peer: IPv4Address) -> float | None:
        """Since the peer last probed the way that data takes, None where it never did."""
        return self._data.heard_ago_s(peer)

    async def round_trip(self, peer: IPv4Address, timeout_s: float, *, size: int = 0) -> float | None:
        """One round trip in milliseconds over the way that data takes; it is not remembered.

        Args:
            size: bytes of the whole inner packet on its way there.
        """
        answer = await self._data.ask(peer, timeout_s, size=size)
        return answer.rtt_ms if answer else None

    async def probe(self, peer: IPv4Address, timeout_s: float = TIMEOUT_S) -> float | None:
        """One round trip in milliseconds, None where no answer came in time. It is remembered."""
        rtt_ms = await self.round_trip(peer, timeout_s)
        self.remember(peer, rtt_ms)
        return rtt_ms

    async def run(self, peers: Callable[[], Iterable[IPv4Address]]) -> None:
        """Probes every peer of the moment once in each interval, a new one at once, until cancelled."""
        due: dict[IPv4Address, float] = {}
        while True:
            now, there = time.monotonic(), set(peers())
            ready = [peer for peer in there if due.get(peer, 0.0) <= now or not self.measured(peer).samples]
            due = {peer: due.get(peer, 0.0) for peer in there}
            # Spread by a little: fifty nodes that joined together must not all probe in the same second for ever.
            due.update({peer: now + INTERVAL_S * random.uniform(0.9, 1.1) for peer in ready})  # noqa: S311 - no secret
            _, *answers = await asyncio.gather(asyncio.sleep(_LOOK_S), *(self.probe(peer) for peer in ready))
            # One lost packet is no news; a second look tells. Who is silent for good is asked as seldom as all.
            lost = [
                peer for peer, rtt in zip(ready, answers, strict=True) if rtt is None and not self.measured(peer).silent
            ]
            due.update({peer: now + _AGAIN_S for peer in lost})
