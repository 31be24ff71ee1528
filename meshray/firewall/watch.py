"""Hears from the kernel that somebody changed rules or forwarding.

with Watch() as watch:
    await watch.wait(60)     # returns at the first change, when it has been quiet for a moment; else after 60 s
"""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType

_NETLINK_ROUTE = 0
_NETLINK_NETFILTER = 12
#: Multicast groups as bits: NFNLGRP_NFTABLES (7) and RTNLGRP_IPV4_NETCONF (24).
_GROUPS = ((_NETLINK_NETFILTER, 1 << 6), (_NETLINK_ROUTE, 1 << 23))
#: A reload is many transactions; this long without one, and it is over.
_QUIET_S = 0.2
#: Somebody who changes rules all the time must not keep us from repairing.
_LONGEST_S = 2.0


class Watch:
    """Netlink's news about rules (nftables, and iptables-nft, ufw, firewalld on top of it) and forwarding.

    Where such a socket cannot be had, `wait` simply waits.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._changed = asyncio.Event()

    def __enter__(self) -> Watch:
        for family, groups in _GROUPS:
            news = None
            try:
                news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, family)
                news.bind((0, groups))
            except OSError:
                if news:
                    news.close()
                continue
            self._sockets.append(news)
            asyncio.get_running_loop().add_reader(news, self._drain, news)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for news in self._sockets:
            asyncio.get_running_loop().remove_reader(news)
            news.close()

    def _drain(self, news: socket.socket) -> None:
        """What exactly changed does not matter; a receive buffer that ran over (ENOBUFS) is a change as well."""
        try:
            while news.recv(65536):
                pass
        except OSError:
            self._changed.set()

    async def wait(self, at_most_s: float) -> None:
        """Until something changed and it has been quiet since, or until the time is up."""
        if not await self._change_within(at_most_s):
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LONGEST_S
        while loop.time() < deadline and await self._change_within(_QUIET_S):
            pass

    async def _change_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        self._changed.clear()
        return True
