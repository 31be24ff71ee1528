"""Detect the nodes with which this node exchanges packets, whatever sends them, kernel or engine.

    overlay interface ──each packet──► filter in the kernel ──a peer not known to be active──► socket ──► on_traffic
                                            ▲                                                    │
                                            └───────── ignore this peer for LISTEN_AGAIN_S ◄─────┘

A packet socket (packet(7)) on the interface gets 20 bytes of the first packet of a peer, sent or received. Then the
filter ignores that peer for a while, so that the agent wakes once per peer and interval, at any rate of packets. The
agent's own probes, and the metrics that one node reads of all others, do not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import socket
import struct
import time
from collections.abc import Callable, Collection
from ipaddress import IPv4Address

from meshray.defaults import METRICS_PORT, PROBE_PORT
from meshray.linux import overlay_netns
from meshray.model.address import OverlayNetwork

log = logging.getLogger(__name__)

#: The time for which a peer that was reported is ignored, seconds.
LISTEN_AGAIN_S = 30.0
#: Ignored peers are listened to again in groups, because each change replaces the filter, seconds.
_GROUP_S = 5.0
#: The pauses before the interface is opened again: while it does not exist, and without the right to open it, seconds.
_RETRY_S, _DENIED_S = 1.0, 300.0
#: The kernel accepts 4,096 instructions; each ignored peer takes two.
MOST_IGNORED = 2000
#: The socket's buffer, bytes: it only needs to hold the packets that arrive before the filter is replaced.
_BUFFER_BYTES = 32768

_IGNORED_PORTS = (PROBE_PORT, METRICS_PORT)
#: include/uapi/linux/if_ether.h: only this protocol also gets the packets that are sent.
_ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER = 26
#: struct sock_filter in include/uapi/linux/filter.h: code, jump if true, jump if false, value.
_INSTRUCTION = struct.Struct("=HBBI")
_LD_WORD, _LD_BYTE, _LD_HALF_AT_X, _LDX_HEADER, _LD_SAVED, _SAVE = 0x20, 0x30, 0x48, 0xB1, 0x60, 0x02
_AND, _JUMP_EQUAL, _RETURN = 0x54, 0x15, 0x06
_IPV4_HEADER_BYTES = 20
#: Offsets in an IPv4 header.
_PROTOCOL_AT, _SOURCE_AT, _DESTINATION_AT = 9, 12, 16

OnTraffic = Callable[[IPv4Address], None]


def filter_of(own: IPv4Address, network: OverlayNetwork, ignored: Collection[IPv4Address]) -> bytes:
    """Return the classic BPF program that passes the headers of packets to and from other peers (pure).

    Args:
        own: this node's address; the other address of a packet is the peer's.
        ignored: the peers whose packets it drops; with more than `MOST_IGNORED` it drops all packets.
    """
    if len(ignored) > MOST_IGNORED:
        return _INSTRUCTION.pack(_RETURN, 0, 0, 0)
    half = network.node_half
    drop, accept = (_RETURN, 0, 0, 0), (_RETURN, 0, 0, _IPV4_HEADER_BYTES)
    program = [
        (_LD_BYTE, 0, 0, 0),
        (_AND, 0, 0, 0xF0),
        (_JUMP_EQUAL, 1, 0, 0x40),
        drop,  # not IPv4
        (_LD_WORD, 0, 0, _DESTINATION_AT),
        (_JUMP_EQUAL, 0, 1, int(own)),
        (_LD_WORD, 0, 0, _SOURCE_AT),
        (_SAVE, 0, 0, 0),
        (_AND, 0, 0, int(half.netmask)),
        (_JUMP_EQUAL, 1, 0, int(half.network_address)),
        drop,  # a probe address, or outside the overlay
        (_LD_SAVED, 0, 0, 0),
    ]
    for peer in ignored:
        program += [(_JUMP_EQUAL, 0, 1, int(peer)), drop]
    ports: list[tuple[int, int, int, int]] = []
    for offset in (0, 2):  # the source port and the destination port
        ports.append((_LD_HALF_AT_X, 0, 0, offset))
        for port in _IGNORED_PORTS:
            ports += [(_JUMP_EQUAL, 0, 1, port), drop]
    program += [
        (_LD_BYTE, 0, 0, _PROTOCOL_AT),
        (_JUMP_EQUAL, 1, 0, socket.IPPROTO_UDP),
        (_JUMP_EQUAL, 0, 1 + len(ports), socket.IPPROTO_TCP),
        (_LDX_HEADER, 0, 0, 0),
        *ports,
        accept,
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def peer_of(header: bytes, own: IPv4Address) -> IPv4Address | None:
    """Return the address in this IPv4 header that is not this node's; None if the header is too short (pure)."""
    if len(header) < _IPV4_HEADER_BYTES:
        return None
    source = IPv4Address(header[_SOURCE_AT:_DESTINATION_AT])
    return source if source != own else IPv4Address(header[_DESTINATION_AT:_IPV4_HEADER_BYTES])


class Traffic:
    """The packets on one interface.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, interface: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._interface = interface
        self._clock = clock
        self._is_denied = False
        self._reported: dict[IPv4Address, float] = {}

    @property
    def is_denied(self) -> bool:
        """Whether this process lacks the right to see the packets (CAP_NET_RAW in the overlay's namespace)."""
        return self._is_denied

    async def run(
        self, own: IPv4Address, network: OverlayNetwork, on_traffic: OnTraffic, on_denied: Callable[[], None]
    ) -> None:
        """Report the peers with which packets are exchanged, each at most once per `LISTEN_AGAIN_S`, until cancelled.

        Args:
            own: this node's address.
            on_denied: called when `is_denied` becomes true.
        """
        while True:
            try:
                tap = await asyncio.to_thread(overlay_netns.run, self._open, own, network)
            except PermissionError:
                if not self._is_denied:
                    log.info(
                        "packets of the overlay cannot be seen here (CAP_NET_RAW): all direct paths are kept ready"
                    )
                self._is_denied = True
                on_denied()
                await asyncio.sleep(_DENIED_S)
                continue
            except OSError:
                await asyncio.sleep(_RETRY_S)
                continue
            self._is_denied = False
            with tap, contextlib.suppress(OSError):  # The interface was removed or set down.
                await self._listen(tap, own, network, on_traffic)
            await asyncio.sleep(_RETRY_S)

    def _open(self, own: IPv4Address, network: OverlayNetwork) -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        try:
            tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            _attach(tap, filter_of(own, network, self._reported))
            tap.bind((self._interface, _ETH_P_ALL))
        except BaseException:
            tap.close()
            raise
        return tap

    async def _listen(self, tap: socket.socket, own: IPv4Address, network: OverlayNetwork, report: OnTraffic) -> None:
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(tap, readable.set)
        try:
            while True:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(readable.wait(), _GROUP_S if self._reported else None)
                readable.clear()
                now, before = self._clock(), len(self._reported)
                self._reported = {ip: at for ip, at in self._reported.items() if now - at < LISTEN_AGAIN_S}
                has_changed = len(self._reported) != before
                for peer in _waiting(tap, own):
                    if peer not in self._reported:
                        self._reported[peer], has_changed = now, True
                        report(peer)
                if has_changed:
                    _attach(tap, filter_of(own, network, self._reported))
        finally:
            loop.remove_reader(tap)


def _waiting(tap: socket.socket, own: IPv4Address) -> set[IPv4Address]:
    """Return the peers of the packets that wait in the socket. Raises OSError if its interface is gone."""
    found = set()
    with contextlib.suppress(BlockingIOError):
        for _ in range(_BUFFER_BYTES):
            peer = peer_of(tap.recv(_IPV4_HEADER_BYTES), own)
            if peer is not None:
                found.add(peer)
    return found


def _attach(tap: socket.socket, program: bytes) -> None:
    """Replace the socket's filter (SO_ATTACH_FILTER of socket(7))."""
    instructions = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(instructions))
    tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
