"""The largest packet that the path to a peer carries. It is found by probing and determines the device's routes.

    1420 passes?  yes: done (nearly always)
                  no: halve between 1420 and 1200, three more sizes at most

    >>> search = MtuSearch().result(1420, passed=False)
    >>> search.next_size()
    1300

Reports of the underlay about packets that are too large (ICMP) are used; an underlay that drops those reports is
detected, because probes of that size are not answered. Sizes are of inner packets, with their IP header.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from meshray.defaults import DEFAULT_MTU, LEAST_MTU
from meshray.model.address import Endpoint

#: The sizes to try: Ethernet's 1500 outside, 1480 (providers' tunnels), 1460 (clouds), 1400 (mobile), down to IPv6's
#: 1280.
SIZES = (DEFAULT_MTU, 1400, 1380, 1340, 1300, 1280, 1240, LEAST_MTU)
#: One lost packet does not mean that it was too large; this many in a row do.
TRIES = 3
#: WireGuard's overhead: outer IP header, UDP header, its header and tag; and its padding.
_OVERHEAD_V4, _OVERHEAD_V6 = 60, 80
_PADDING = 16
#: IP_MTU_DISCOVER, IP_MTU of linux/in.h; the equivalents of linux/in6.h.
_V4 = (socket.IPPROTO_IP, 10, 14)
_V6 = (socket.IPPROTO_IPV6, 23, 24)
#: IP_PMTUDISC_DO, IP_PMTUDISC_PROBE.
_DONT_FRAGMENT, _IGNORE_ROUTE = 2, 3
#: The size of the largest inner packet outside, without the outer headers.
_FULL_PAYLOAD = DEFAULT_MTU + 32


@dataclass(frozen=True)
class MtuSearch:
    """The search for the sizes that pass (pure).

    Attributes:
        sizes: largest first.
        fits: index of the largest size that passed; len(sizes): none did yet.
        fails: index of the smallest size that did not; -1: none was tried.
    """

    sizes: tuple[int, ...] = SIZES
    fits: int = len(SIZES)
    fails: int = -1

    def next_size(self) -> int | None:
        """Return the size to try now; None if the search is complete."""
        if self.fits - self.fails <= 1:
            return None
        if self.fails == -1 and self.fits == len(self.sizes):
            return self.sizes[0]
        return self.sizes[(self.fits + self.fails) // 2]

    def result(self, size: int, passed: bool) -> MtuSearch:
        """Record that a packet of this size (one of `sizes`) came through, or that `TRIES` of them did not."""
        index = self.sizes.index(size)
        if passed:
            return replace(self, fits=min(self.fits, index))
        return replace(self, fails=max(self.fails, index))

    def at_most(self, largest: int) -> MtuSearch:
        """Record the underlay's report that nothing above this size fits."""
        too_large = [index for index, size in enumerate(self.sizes) if size > largest]
        # The smallest is always tried: a wrong report must not end the search without a result.
        return replace(self, fails=max([self.fails, *too_large[: len(self.sizes) - 1]]))

    @property
    def mtu(self) -> int | None:
        """The largest size known to pass; None: not even the smallest did, so the size is not the cause."""
        return self.sizes[self.fits] if self.fits < len(self.sizes) else None


def no_report() -> int | None:
    """Report nothing, for an underlay that cannot be asked: the path is not UDP, or its endpoint is unknown."""
    return None


async def find_mtu(
    probe: Callable[[int], Awaitable[bool]],
    underlay: Callable[[], int | None] = no_report,
    search: MtuSearch = MtuSearch(),
) -> int | None:
    """Search, with four sizes at most; return None if nothing passes now.

    Args:
        probe: returns whether an inner packet of this size was answered before its own timeout. It must be sent with
            "don't fragment", whatever the kernel assumes about the path (see `dont_fragment`).
        underlay: returns its reports so far; see `underlay_reports`.
        search: the results known already.
    """
    while (size := search.next_size()) is not None:
        passed = await passes(probe, size)
        if passed is None:
            return None
        limit = underlay()
        if limit is not None and limit < size and size != search.sizes[-1]:
            # It may have passed in fragments, which are costly and get lost in many networks.
            search = search.at_most(limit)
        else:
            search = search.result(size, passed)
    return search.mtu


@contextlib.contextmanager
def underlay_reports(endpoint: Endpoint | None) -> Iterator[Callable[[], int | None]]:
    """Let the routers on the path to this endpoint report that a full packet is too large for them.

    Sends one datagram that must not be fragmented and that WireGuard ignores. Yields a function that returns the
    largest inner packet that passes unfragmented, as far as the kernel knows by now.
    """
    ip = endpoint.ip if endpoint is not None else None
    if endpoint is None or ip is None:
        yield no_report
        return
    is_v6 = isinstance(ip, IPv6Address)
    level, discover, mtu = _V6 if is_v6 else _V4
    with socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        # EMSGSIZE: the kernel knows it already. On any other error nothing will be reported.
        with contextlib.suppress(OSError):
            udp.setblocking(False)
            udp.setsockopt(level, discover, _DONT_FRAGMENT)
            udp.connect((str(ip), endpoint.port))
            udp.send(bytes(_FULL_PAYLOAD))

        def limit() -> int | None:
            try:
                # Routers report to a host once a second and not for every packet (icmp_ratelimit): the report may have
                # come for another packet to the same address. The socket learns of it when it looks up its route again.
                udp.connect((str(ip), endpoint.port))
                return largest_inner(udp.getsockopt(level, mtu), is_v6=is_v6)
            except OSError:
                return None

        yield limit


def dont_fragment(probes: socket.socket) -> None:
    """Prepare the IPv4 socket that sends probes over the overlay.

    No router may fragment them, and the kernel's assumption about the path (a route's mtu) is ignored.
    """
    level, discover, _ = _V4
    probes.setsockopt(level, discover, _IGNORE_ROUTE)


def largest_inner(outer: int, *, is_v6: bool) -> int:
    """Return the largest inner packet in an outer one of this size. WireGuard pads to 16 bytes, up to the MTU."""
    room = outer - (_OVERHEAD_V6 if is_v6 else _OVERHEAD_V4)
    return room if room >= DEFAULT_MTU else room // _PADDING * _PADDING


async def passes(probe: Callable[[int], Awaitable[bool]], size: int) -> bool | None:
    """Return whether packets of this size pass.

    None: the smallest do not pass either, so the size is not the cause; the path is silent now.
    """
    for _ in range(TRIES):
        if await probe(size):
            return True
        if size != SIZES[-1] and not await passes(probe, SIZES[-1]):
            return None
    return False
