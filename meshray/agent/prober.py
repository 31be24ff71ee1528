"""Round trips over the overlay: one small UDP packet to each peer and back, every few seconds.

    ping  b"mr" 1 <8 random bytes>   ──►   the peer's agent
    pong  b"mr" 2 <the same bytes>   ◄──

The overlay authenticates the sender, so the packets need no secret of their own.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from statistics import median
from typing import cast

from meshray.settings import PROBE_PORT

_PING, _PONG = b"mr\x01", b"mr\x02"
_NONCE_BYTES = 8
#: An answer later than this counts as lost.
TIMEOUT_S = 2.0
#: Each peer is asked this often. 50 peers then cost below 1 kB/s with all headers.
INTERVAL_S = 10.0
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


class Prober(asyncio.DatagramProtocol):
    """Answers the probes of others and sends its own."""

    def __init__(self) -> None:
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._measured: dict[IPv4Address, Measured] = {}

    async def open(self, address: IPv4Address) -> None:
        """Listens on this node's overlay address. Raises OSError where it cannot be bound."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, local_addr=(str(address), PROBE_PORT))

    def close(self) -> None:
        """Ends listening."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def measured(self, peer: IPv4Address) -> Measured:
        """What is known of this peer; empty for one that was never probed."""
        return self._measured.get(peer, Measured())

    async def probe(self, peer: IPv4Address, timeout_s: float = TIMEOUT_S) -> float | None:
        """One round trip in milliseconds, None where no answer came in time. It is remembered."""
        rtt_ms = await self._round_trip(peer, timeout_s)
        self._measured.setdefault(peer, Measured()).samples.append(rtt_ms)
        return rtt_ms

    async def run(self, peers: Callable[[], Iterable[IPv4Address]]) -> None:
        """Probes every peer of the moment, spread evenly over the interval, until cancelled."""
        while True:
            now_there = list(peers())
            self._measured = {peer: seen for peer, seen in self._measured.items() if peer in set(now_there)}
            for peer in now_there:
                await asyncio.gather(self.probe(peer), asyncio.sleep(INTERVAL_S / len(now_there)))
            if not now_there:
                await asyncio.sleep(INTERVAL_S)

    async def _round_trip(self, peer: IPv4Address, timeout_s: float) -> float | None:
        if self._transport is None:
            return None
        nonce = secrets.token_bytes(_NONCE_BYTES)
        answered = asyncio.get_running_loop().create_future()
        self._waiting[nonce] = answered
        sent = time.perf_counter()
        try:
            self._transport.sendto(_PING + nonce, (str(peer), PROBE_PORT))
            await asyncio.wait_for(answered, timeout_s)
        except (asyncio.TimeoutError, OSError):
            return None
        finally:
            del self._waiting[nonce]
        return round((time.perf_counter() - sent) * 1000, 3)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is open."""
        # Promised by create_datagram_endpoint; no base class says so before Python 3.12.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """asyncio: a packet came."""
        kind, nonce = data[: len(_PING)], data[len(_PING) :]
        if len(nonce) != _NONCE_BYTES or self._transport is None:
            return
        if kind == _PING:
            self._transport.sendto(_PONG + nonce, addr)
        elif kind == _PONG and nonce in self._waiting and not self._waiting[nonce].done():
            self._waiting[nonce].set_result(None)
