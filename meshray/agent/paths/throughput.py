"""How fast the way to a peer is, by a packet train; see `meshray.agent.paths.trains` for what that tells.

    meter = ThroughputMeter()
    await meter.open(IPv4Address("10.99.0.7"))
    await meter.sample(IPv4Address("10.99.0.9"))     # 94.3 (Mbit/s); None: no answer

The kernel's own arrival times are used, so that an agent that was busy for a moment does not falsify them. The
overlay authenticates the sender, and a whole train gets one small answer, so nobody is flooded with this.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
import time
from collections import OrderedDict
from ipaddress import IPv4Address

from meshray.agent.paths.trains import ID_BYTES, LONG_TRAIN, PAYLOAD_BYTES, SHORT_TRAIN, Arrivals, Car, Report, read
from meshray.defaults import PROBE_PORT
from meshray.linux import overlay_netns

#: UDP on the overlay address, beside the probes'.
PORT = PROBE_PORT + 1
#: The longest that a train may take: the short one at 200 kbit/s.
REPORT_S = 1.5
#: No further packet for so long, and the rest was lost.
_QUIET_S = 0.4
#: Trains that come in at the same time; more than these push out the oldest.
_MOST_TRAINS = 32
#: A whole train waits here while the agent is busy; each packet counts for two kilobytes and more.
_BUFFER_BYTES = 1 << 20
#: SO_TIMESTAMPNS, SO_RCVBUFFORCE of asm-generic/socket.h.
_TIMESTAMP, _BUFFER_FORCE = 35, 33
_TIMESPEC = struct.Struct("@ll")

Sender = tuple[str, int]


class ThroughputMeter:
    """Samples the ways to others, and answers their trains."""

    def __init__(self, port: int = PORT) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._trains: OrderedDict[tuple[Sender, bytes], Arrivals] = OrderedDict()
        self._ends: dict[tuple[Sender, bytes], asyncio.TimerHandle] = {}
        self._waiting: dict[tuple[str, bytes], asyncio.Future[Report]] = {}
        # One at a time: two trains at once would measure each other.
        self._one_train = asyncio.Lock()

    async def open(self, address: IPv4Address) -> None:
        """Listens on this node's overlay address. Raises OSError where it cannot be bound."""
        udp = overlay_netns.udp(address, self._port)
        try:
            udp.setsockopt(socket.SOL_SOCKET, _TIMESTAMP, 1)
            with contextlib.suppress(OSError):  # without root the limit of the machine holds
                udp.setsockopt(socket.SOL_SOCKET, _BUFFER_FORCE, _BUFFER_BYTES)
        except OSError:
            udp.close()
            raise
        self._socket = udp
        asyncio.get_running_loop().add_reader(udp, self._receive, udp)

    def close(self) -> None:
        """Ends listening; whoever waits for a sample gets None."""
        for timer in self._ends.values():
            timer.cancel()
        self._ends.clear()
        self._trains.clear()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    async def sample(self, peer: IPv4Address) -> float | None:
        """Megabits per second from here to the peer, at most 244 KiB sent; None where no train told anything."""
        async with self._one_train:
            report = await self._send(peer, SHORT_TRAIN)
            if report is not None and not report.is_enough:
                report = await self._send(peer, LONG_TRAIN) or report
        return report.mbit_s if report is not None else None

    async def _send(self, peer: IPv4Address, length: int) -> Report | None:
        if self._socket is None:
            return None
        loop = asyncio.get_running_loop()
        train = secrets.token_bytes(ID_BYTES)
        reported = self._waiting[str(peer), train] = loop.create_future()
        try:
            deadline = loop.time() + REPORT_S
            for number in range(length):
                await self._put(Car(train, number, length).to_bytes(), (str(peer), self._port), deadline)
            return await asyncio.wait_for(reported, max(0.0, deadline - loop.time()))
        except (asyncio.TimeoutError, OSError):
            return None
        finally:
            del self._waiting[str(peer), train]

    async def _put(self, data: bytes, to: Sender, deadline: float) -> None:
        """Sends at once; only where the device's queue is full it waits for room."""
        while self._socket is not None:
            try:
                self._socket.sendto(data, to)
                return
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0)

    def _receive(self, udp: socket.socket) -> None:
        # Not all at once: the agent has other work as well.
        for _ in range(LONG_TRAIN):
            try:
                data, ancillary, _, sender = udp.recvmsg(PAYLOAD_BYTES + 1, socket.CMSG_SPACE(_TIMESPEC.size))
            except OSError:  # nothing more, or an ICMP answer to a datagram of ours
                return
            message = read(data)
            if isinstance(message, Car):
                self._arrived(message, sender, _arrival_ns(ancillary))
            elif isinstance(message, Report) and sender[1] == self._port:
                waiting = self._waiting.get((sender[0], message.train))
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)

    def _arrived(self, car: Car, sender: Sender, now_ns: int) -> None:
        key = (sender, car.train)
        known = self._trains.get(key)
        self._trains[key] = known.and_one(now_ns) if known else Arrivals(car.train, now_ns, now_ns)
        if known is None and len(self._trains) > _MOST_TRAINS:
            self._forget(next(iter(self._trains)))
        if car.is_last:
            self._report(key)
        elif known is None:
            self._expect_more(key, now_ns)

    def _expect_more(self, key: tuple[Sender, bytes], last_ns: int) -> None:
        self._ends[key] = asyncio.get_running_loop().call_later(_QUIET_S, self._went_quiet, key, last_ns)

    def _went_quiet(self, key: tuple[Sender, bytes], last_ns: int) -> None:
        if self._trains[key].last_ns == last_ns:
            self._report(key)
        else:
            self._expect_more(key, self._trains[key].last_ns)

    def _report(self, key: tuple[Sender, bytes]) -> None:
        report = self._trains[key].report()
        self._forget(key)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(report.to_bytes(), key[0])

    def _forget(self, key: tuple[Sender, bytes]) -> None:
        del self._trains[key]
        if timer := self._ends.pop(key, None):
            timer.cancel()


def _arrival_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _TIMESTAMP and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return time.time_ns()
