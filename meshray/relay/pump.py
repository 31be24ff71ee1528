"""Both directions between a UDP socket and the WebSocket of a relay.

    readable ──► all waiting groups ──► backlog ──► as many per message as fit ──► WebSocket
                                                              kernel ◄── runs ◄── message

Reading never waits for sending: while the WebSocket is slow, the backlog drops its oldest groups. Both directions end
in the callback in which they begin, because each turn of the event loop adds to the tunnel's round trip.

>>> pump = Pump(sock, destination)
>>> pump.start()
>>> websocket = pump.carry(transport, in_groups=True, is_client=False)
>>> await websocket.wait_closed()
>>> pump.close()
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from meshray.relay.frames import Backlog, Group, join, pack, pack_groups, runs, runs_of_groups, split, unpack
from meshray.relay.relay_websocket import RelayWebSocket
from meshray.relay.udp import Address, Sender, receive

#: 20 ms at the throughput of user-space WireGuard; one second of a slow connection of 4 Mbit/s.
BACKLOG_BYTES = 512 * 1024

#: Called with each batch before it is sent: the groups and their source.
OnBatch = Callable[[Sequence[Group], Address], None]


class Pump:
    """The datagrams of one relay connection; see the module's docstring. The pump owns the socket.

    Args:
        on_batch: called with each batch of groups from the socket; it must not block.

    Attributes:
        wireguard: where datagrams from the WebSocket are sent; None: to the address to which the socket is connected.
    """

    def __init__(self, sock: socket.socket, on_batch: OnBatch | None = None) -> None:
        self._sock = sock
        self._on_batch = on_batch
        self._websocket: RelayWebSocket | None = None
        self._in_groups = False
        self.sender = Sender(sock)
        self.wireguard: Address | None = None
        self.backlog = Backlog(BACKLOG_BYTES)

    def start(self) -> None:
        """Start reading the socket."""
        asyncio.get_running_loop().add_reader(self._sock, self._read)

    def close(self) -> None:
        """Stop reading and close the socket. Idempotent."""
        self.release()
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    def carry(self, transport: asyncio.Transport, *, in_groups: bool, is_client: bool) -> RelayWebSocket:
        """Use this connection until `release`; return its WebSocket.

        Args:
            in_groups: the form of the messages; see `meshray.relay.frames`.
            is_client: whether this side opened the connection.
        """
        self._in_groups = in_groups
        self._websocket = RelayWebSocket(transport, self._deliver, self._flush, is_client=is_client)
        self._flush()
        return self._websocket

    def release(self) -> None:
        """Keep what arrives in the backlog again."""
        self._websocket = None

    def _read(self) -> None:
        reads, source = receive(self._sock)
        if source is None:
            return
        groups = join(reads) if len(reads) > 1 else reads
        if self._on_batch is not None:
            self._on_batch(groups, source)
        self.backlog.put(groups)
        self._flush()

    def _flush(self) -> None:
        while self._websocket is not None and self._websocket.writable and self.backlog:
            groups = self.backlog.take()
            if self._in_groups:
                self._websocket.send(pack_groups(groups))
            else:
                self._websocket.send(pack(datagram for group in groups for datagram in split(group)))

    def _deliver(self, message: memoryview) -> None:
        self.sender.send(runs_of_groups(message) if self._in_groups else runs(unpack(message)), self.wireguard)
