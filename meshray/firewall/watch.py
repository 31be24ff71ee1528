"""Watch the kernel for changes of rules or forwarding.

with Watch() as watch:
    await watch.wait(60)     # returns at the first change, at the latest after 60 s
    repair()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import TracebackType

_NETLINK_ROUTE = 0
_NETLINK_NETFILTER = 12
#: Multicast groups as bits: NFNLGRP_NFTABLES (7) and RTNLGRP_IPV4_NETCONF (24).
_GROUPS = ((_NETLINK_NETFILTER, 1 << 6), (_NETLINK_ROUTE, 1 << 23))
#: A reload is many transactions. The first one is answered at once, the others together after a pause, which grows
#: while they go on: a program that changes rules all the time neither prevents our repair nor keeps us busy.
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 1.0


class Watch:
    """Netlink notifications about rules (nftables, and iptables-nft, ufw, firewalld on top of it) and forwarding.

    Where such a socket is not permitted, `wait` only waits for its timeout.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._changed = asyncio.Event()
        self._reported_at = -_LONGEST_PAUSE_S
        self._pause_s = _PAUSE_S

    def __enter__(self) -> Watch:
        for family, groups in _GROUPS:
            notification_socket = None
            try:
                notification_socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, family)
                notification_socket.bind((0, groups))
            except OSError:
                if notification_socket:
                    notification_socket.close()
                continue
            self._sockets.append(notification_socket)
            asyncio.get_running_loop().add_reader(notification_socket, self._drain, notification_socket)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for notification_socket in self._sockets:
            asyncio.get_running_loop().remove_reader(notification_socket)
            notification_socket.close()

    def _drain(self, notification_socket: socket.socket) -> None:
        """Discard the notifications: their content does not matter. A receive buffer overflow (ENOBUFS) is a change as
        well."""
        try:
            while notification_socket.recv(65536):
                pass
        except OSError:
            self._changed.set()

    async def wait(self, at_most_s: float) -> None:
        """Wait for a change or the timeout. The first change is reported at once, the next one after a pause."""
        loop = asyncio.get_running_loop()
        pause_s = self._reported_at + self._pause_s - loop.time()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        ongoing = pause_s > 0 and self._changed.is_set()
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S) if ongoing else _PAUSE_S
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), at_most_s)
        self._changed.clear()
        self._reported_at = loop.time()
