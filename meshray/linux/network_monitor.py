"""Watch the kernel for changes of this machine's network: addresses, default routes, interfaces, sleep.

    async for reason in network_changes():
        log.info("network: %s", reason)      # "new address 192.168.7.20 on wlan0; new default route via wlan0"

Only changes that affect the path of packets are reported. Changes of the overlay's interface and of container
interfaces are ignored, and so are repeated messages (an IPv6 router announces the same prefix every few minutes).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator

from meshray.defaults import INTERFACE
from meshray.linux import rtnetlink
from meshray.linux.network_state import NetworkState

log = logging.getLogger(__name__)

_GROUPS = (
    rtnetlink.LINKS
    | rtnetlink.IPV4_ADDRESSES
    | rtnetlink.IPV4_ROUTES
    | rtnetlink.IPV6_ADDRESSES
    | rtnetlink.IPV6_ROUTES
)
#: A new network causes a dozen messages. After this time without one it is complete, seconds.
DEBOUNCE_S = 0.3
#: The longest delay of a report while an interface is flapping, seconds.
MAX_DELAY_S = 2.0
#: The interval at which the clocks are compared, and so the longest delay until a sleep is noticed, seconds.
CLOCK_INTERVAL_S = 2.0
#: A smaller difference is clock drift, seconds.
_MIN_SLEEP_S = 0.5
#: The limit of a dump, seconds. Full Internet routing tables would take minutes, but such a machine does not roam.
_DUMP_S = 2.0


class SleepWatch:
    """Detects that the machine slept: the boot clock advances during sleep, the monotonic clock does not."""

    def __init__(self, boottime_s: float, monotonic_s: float) -> None:
        self._offset_s = boottime_s - monotonic_s

    def slept_s(self, boottime_s: float, monotonic_s: float) -> float:
        """Return how long the machine slept since the last call, seconds; 0 if it did not."""
        before, self._offset_s = self._offset_s, boottime_s - monotonic_s
        slept = self._offset_s - before
        return slept if slept >= _MIN_SLEEP_S else 0.0


async def network_changes(own: str = INTERFACE, debounce_s: float = DEBOUNCE_S) -> AsyncIterator[str]:
    """Yield a description of the changes for a log, after a moment without further changes.

    Without netlink (in a sandbox) only sleep is reported. Close the iterator (``aclose``) to stop listening.

    Args:
        own: the overlay's interface.
    """
    watch = _NetworkWatch(own)
    try:
        await watch.open()
        while True:
            yield await watch.next_change(debounce_s)
    finally:
        watch.close()


class _NetworkWatch:
    def __init__(self, own: str) -> None:
        self._state = NetworkState(own)
        self._reasons: dict[str, None] = {}
        self._changed = asyncio.Event()
        self._socket: socket.socket | None = None
        self._sleep = SleepWatch(*_clocks())

    async def open(self) -> None:
        try:
            # Listen before reading the current state, so that a change in between is seen twice, not missed.
            self._socket = rtnetlink.listen(_GROUPS)
            await asyncio.to_thread(_read_all, self._state)
        except OSError as error:
            log.warning("changes of the network cannot be watched: %s", error)
            self.close()
            return
        asyncio.get_running_loop().add_reader(self._socket, self._drain, self._socket)

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    async def next_change(self, debounce_s: float) -> str:
        while not await self._change_within(CLOCK_INTERVAL_S):
            pass
        loop = asyncio.get_running_loop()
        deadline = loop.time() + MAX_DELAY_S
        while loop.time() < deadline and await self._change_within(debounce_s):
            pass
        reasons, self._reasons = self._reasons, {}
        return "; ".join(reasons)

    async def _change_within(self, seconds: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
        if slept_s := self._sleep.slept_s(*_clocks()):
            self._reasons[f"the machine slept for {slept_s:.0f} s"] = None
            return True
        changed = self._changed.is_set()
        self._changed.clear()
        return changed

    def _drain(self, sock: socket.socket) -> None:
        try:
            while data := sock.recv(65536):
                self._record(self._state.feed(data))
        except BlockingIOError:
            pass
        except OSError as error:  # ENOBUFS: the socket's buffer overflowed
            self._record([f"many changes at once ({error.strerror})"])

    def _record(self, reasons: list[str]) -> None:
        if reasons:
            self._reasons.update(dict.fromkeys(reasons))
            self._changed.set()


def _clocks() -> tuple[float, float]:
    return time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()


def _read_all(state: NetworkState) -> None:
    """Read the current interfaces, addresses and routes. Blocks."""
    deadline = time.monotonic() + _DUMP_S
    with rtnetlink.RouteSocket(_DUMP_S) as kernel:
        for request, answer in (
            (rtnetlink.RTM_GETLINK, rtnetlink.RTM_NEWLINK),
            (rtnetlink.RTM_GETADDR, rtnetlink.RTM_NEWADDR),
            (rtnetlink.RTM_GETROUTE, rtnetlink.RTM_NEWROUTE),
        ):
            # A body of an ifinfomsg with family AF_UNSPEC serves all three.
            for body in kernel.dump(request, bytes(rtnetlink.LINK.size)):
                state.process(answer, body)
                if time.monotonic() > deadline:
                    return
