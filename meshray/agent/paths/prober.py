"""Round trips over the overlay: one small UDP packet to a peer and back.

    ping  b"mr" 1 <8 random bytes> <1: I hear you> <padding>   ──►   the peer's agent
    pong  b"mr" 2 <the same bytes> <1: I hear you>             ◄──

To the node's own address a probe takes the path of data; to its probe address only the direct path. The overlay
authenticates the sender, so the packets need no secret of their own.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import cast

from meshray.agent.paths.mtu import dont_fragment
from meshray.agent.paths.samples import CLOSE_S, INTERVAL_S, History, Measured
from meshray.defaults import PROBE_PORT
from meshray.linux import overlay_netns
from meshray.linux.udp_queue import enlarge_buffers

_PING, _PONG = b"mr\x01", b"mr\x02"
_NONCE_BYTES = 8
_LENGTH = len(_PING) + _NONCE_BYTES + 1
#: IPv4 and UDP headers of a probe, bytes: a probe of an inner size has that much less payload.
_HEADERS_BYTES = 28
#: An answer later than this counts as lost.
TIMEOUT_S = 2.0
#: After a hub is back, silent peers are probed at short intervals for this long, seconds.
_EXPEDITED_S = 5.0
#: The trains of the doctor of ten nodes at the same moment: 128 packets each, which the kernel counts as 2.3 KB.
_BUFFER_BYTES = 3 << 20
#: The interval at which new peers are detected, seconds.
_CHECK_S = 1.0


@dataclass(frozen=True)
class Answer:
    """The answer to a probe.

    Attributes:
        peer_hears: whether the peer's probes to this node are answered as well.
    """

    rtt_ms: float
    peer_hears: bool


def _never_hears(peer: IPv4Address, hears_us: bool) -> bool:
    return False


class Echo(asyncio.DatagramProtocol):
    """Send and answer probes on one address.

    Args:
        on_ping: called with each peer's ping and whether that peer hears this node; returns whether this node hears it.
    """

    def __init__(self, on_ping: Callable[[IPv4Address, bool], bool] = _never_hears) -> None:
        self.on_ping = on_ping
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: dict[bytes, asyncio.Future[bool]] = {}
        self._heard: dict[IPv4Address, float] = {}
        self._answered: dict[IPv4Address, float] = {}

    @property
    def is_open(self) -> bool:
        """Whether it listens; before that, no probe can be sent."""
        return self._transport is not None

    async def open(self, address: IPv4Address) -> None:
        """Listen on this address. Raises OSError if it cannot be bound."""
        loop = asyncio.get_running_loop()
        sock = overlay_netns.udp(address, PROBE_PORT)
        enlarge_buffers(sock, _BUFFER_BYTES)
        await loop.create_datagram_endpoint(lambda: self, sock=sock)

    def close(self) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    async def ping(self, peer: IPv4Address, timeout_s: float, *, hears: bool = False, size: int = 0) -> Answer | None:
        """Make one round trip; return None if no answer came in time.

        Args:
            hears: reported to the peer.
            size: bytes of the whole inner packet that is sent; the answer is small.
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
        """Return the seconds since the peer last sent a probe; None if it never did."""
        heard = self._heard.get(peer)
        return None if heard is None else time.monotonic() - heard

    def answered_ago_s(self, peer: IPv4Address) -> float | None:
        """Return the seconds since the peer last answered, however late; None if it never did."""
        answered = self._answered.get(peer)
        return None if answered is None else time.monotonic() - answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Handle asyncio's report that the socket is open."""
        # create_datagram_endpoint guarantees it; no base class declares that before Python 3.12.
        self._transport = cast(asyncio.DatagramTransport, transport)
        dont_fragment(transport.get_extra_info("socket"))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Handle a packet from asyncio."""
        if len(data) < _LENGTH or self._transport is None:
            return
        kind, nonce, hears_us = data[: len(_PING)], data[len(_PING) : _LENGTH - 1], bool(data[_LENGTH - 1])
        if kind == _PING:
            self._heard[IPv4Address(addr[0])] = time.monotonic()
            hears = self.on_ping(IPv4Address(addr[0]), hears_us)
            self._transport.sendto(_PONG + nonce + bytes([hears]), addr)
        elif kind == _PONG:
            self._answered[IPv4Address(addr[0])] = time.monotonic()
            if nonce in self._waiting and not self._waiting[nonce].done():
                self._waiting[nonce].set_result(hears_us)


class Prober:
    """This node's echoes: over the path that data takes, and over the direct path.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.direct = Echo()
        self._data = Echo(self._on_ping)
        self._clock = clock
        self._histories: dict[IPv4Address, History] = {}
        self._due: dict[IPv4Address, float] = {}
        self._opened = 0.0
        self._expedited_at = -math.inf

    async def open(self, address: IPv4Address, probe_address: IPv4Address) -> None:
        """Listen on both addresses of this node. Raises OSError if one cannot be bound."""
        await self._data.open(address)
        await self.direct.open(probe_address)
        self._opened = time.monotonic()

    def close(self) -> None:
        """Stop listening."""
        self._data.close()
        self.direct.close()

    @property
    def is_open(self) -> bool:
        """Whether probes can be sent; before that, an unanswered one means nothing."""
        return self._data.is_open

    def measured(self, peer: IPv4Address) -> Measured:
        """Return the current result of this peer's last probes; empty if it was never probed."""
        history = self._histories.get(peer)
        return history.measured(self._clock()) if history is not None else Measured()

    def remember(self, peer: IPv4Address, rtt_ms: float | None) -> None:
        """Add one probe of the data path; None: it was not answered."""
        self._histories.setdefault(peer, History()).add(rtt_ms, self._clock())

    def path_changed(self, peer: IPv4Address) -> None:
        """Discard the measurements of this peer, whose data path changed."""
        self._histories.pop(peer, None)
        self._due.pop(peer, None)

    def probe_silent_peers(self) -> None:
        """Probe the silent peers at once, and at short intervals for some seconds, because a hub is back.

        The path to the hub may change again, which may lose the first probe.
        """
        self._expedited_at = self._clock()
        self._due.update({peer: 0.0 for peer in self._due if self._is_lost(peer)})

    def heard_ago_s(self, peer: IPv4Address) -> float | None:
        """Return the seconds since the peer last probed the data path; None if it never did."""
        return self._data.heard_ago_s(peer)

    def answered_ago_s(self, peer: IPv4Address) -> float | None:
        """Return the seconds since the last round trip of data to the peer; None if there was none."""
        return self._data.answered_ago_s(peer)

    def unanswered_s(self, peer: IPv4Address) -> float:
        """Return the seconds without a round trip of data to the peer, at most since probes can be sent."""
        open_s = time.monotonic() - self._opened if self.is_open else 0.0
        answered_s = self.answered_ago_s(peer)
        return open_s if answered_s is None else min(open_s, answered_s)

    async def round_trip(self, peer: IPv4Address, timeout_s: float, *, size: int = 0) -> float | None:
        """Measure one round trip over the data path, milliseconds, without recording it.

        Args:
            size: bytes of the whole inner packet that is sent.
        """
        answer = await self._data.ping(peer, timeout_s, size=size)
        return answer.rtt_ms if answer else None

    async def probe(self, peer: IPv4Address, timeout_s: float = TIMEOUT_S) -> float | None:
        """Measure and record one round trip, milliseconds; None if no answer came in time.

        It is not recorded if the path to the peer changed meanwhile: a probe lost on the old path proves
        nothing about the new one.
        """
        history = self._histories.setdefault(peer, History())
        rtt_ms = await self.round_trip(peer, timeout_s)
        history.add(rtt_ms, self._clock())
        return rtt_ms

    async def run(self, peers: Callable[[], Iterable[IPv4Address]]) -> None:
        """Probe every current peer: often while its path is new, lossy or just recovered, rarely while it is idle."""
        while True:
            now, current = self._clock(), set(peers())
            self._due = {peer: due for peer, due in self._due.items() if peer in current}
            ready = [peer for peer in current if self._due.get(peer, now) <= now]
            self._due.update(dict.fromkeys(ready, math.inf))
            await asyncio.gather(asyncio.sleep(_CHECK_S), *(self.probe(peer) for peer in ready))
            for peer in ready:
                # Peers that became due meanwhile stay due.
                if self._due.get(peer) == math.inf:
                    self._due[peer] = now + self._pause_s(peer)

    def _pause_s(self, peer: IPv4Address) -> float:
        history = self._histories.get(peer)
        pause_s = history.pause_s(self._clock()) if history is not None else 0.0
        if self._clock() - self._expedited_at < _EXPEDITED_S and self._is_lost(peer):
            return min(pause_s, CLOSE_S)
        # Jitter: fifty nodes that joined together must not all probe in the same second for ever.
        return pause_s * random.uniform(0.9, 1.1) if pause_s >= INTERVAL_S else pause_s  # noqa: S311 - no secret

    def _is_lost(self, peer: IPv4Address) -> bool:
        history = self._histories.get(peer)
        return history is not None and history.is_lost

    def _on_ping(self, peer: IPv4Address, hears_us: bool) -> bool:
        # A silent peer sends probes: it is back.
        if self._is_lost(peer):
            self._due[peer] = 0.0
        return False
