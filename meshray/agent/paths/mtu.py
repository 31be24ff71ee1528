"""How large a packet the path to a peer carries: found by trying; the device's routes follow from it.

    1420 passes?  yes: done (nearly always)
                  no: halve between 1420 and 1200, three more sizes at most

    >>> search = MtuSearch().result(1420, passed=False)
    >>> search.next_size()
    1300

An underlay that reports packets which are too large (ICMP) is believed; one that eats those reports is found out,
because the probes of that size do not come back. Sizes are of inner packets, with their IP header.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from meshray.defaults import DEFAULT_MTU, LEAST_MTU
from meshray.model.address import Endpoint

#: What is tried: Ethernet's 1500 outside, 1480 (providers' tunnels), 1460 (clouds), 1400 (mobile), down to IPv6's 1280.
SIZES = (DEFAULT_MTU, 1400, 1380, 1340, 1300, 1280, 1240, LEAST_MTU)
#: A lost packet is not a packet that is too large: only so many in a row are.
TRIES = 3
#: WireGuard's own: outer IP header, UDP header, its header and tag; and its padding.
_OVERHEAD_V4, _OVERHEAD_V6 = 60, 80
_PADDING = 16
#: IP_MTU_DISCOVER, IP_MTU of linux/in.h; the same of linux/in6.h.
_V4 = (socket.IPPROTO_IP, 10, 14)
_V6 = (socket.IPPROTO_IPV6, 23, 24)
#: IP_PMTUDISC_DO, IP_PMTUDISC_PROBE.
_DONT_FRAGMENT, _IGNORE_ROUTE = 2, 3
#: What the largest inner packet becomes outside, less the outer headers.
_FULL_PAYLOAD = DEFAULT_MTU + 32


@dataclass(frozen=True)
class MtuSearch:
    """Which sizes pass, as far as is known (pure).

    Attributes:
        sizes: largest first.
        fits: place of the largest size that passed; len(sizes): none did yet.
        fails: place of the smallest size that did not; -1: none was tried.
    """

    sizes: tuple[int, ...] = SIZES
    fits: int = len(SIZES)
    fails: int = -1

    def next_size(self) -> int | None:
        """What to try now; None: it is known."""
        if self.fits - self.fails <= 1:
            return None
        if self.fails == -1 and self.fits == len(self.sizes):
            return self.sizes[0]
        return self.sizes[(self.fits + self.fails) // 2]

    def result(self, size: int, passed: bool) -> MtuSearch:
        """A packet of this size (one of `sizes`) came through, or `TRIES` of them did not."""
        place = self.sizes.index(size)
        if passed:
            return replace(self, fits=min(self.fits, place))
        return replace(self, fails=max(self.fails, place))

    def at_most(self, largest: int) -> MtuSearch:
        """The underlay says that nothing above this size fits."""
        too_large = [place for place, size in enumerate(self.sizes) if size > largest]
        # The smallest is always tried: a wrong report must not end the search with nothing.
        return replace(self, fails=max([self.fails, *too_large[: len(self.sizes) - 1]]))

    @property
    def mtu(self) -> int | None:
        """The largest size known to pass; None: not even the smallest did, which is no matter of size."""
        return self.sizes[self.fits] if self.fits < len(self.sizes) else None


def no_report() -> int | None:
    """Of an underlay that cannot be asked: the path is no UDP, or its endpoint is not known."""
    return None


async def find_mtu(
    probe: Callable[[int], Awaitable[bool]],
    underlay: Callable[[], int | None] = no_report,
    search: MtuSearch = MtuSearch(),
) -> int | None:
    """Searches, four sizes at most; None where nothing passes at all, be it for a while.

    Args:
        probe: whether an inner packet of this size came through and was answered, in its own time. It must leave with
            "don't fragment" set, whatever the kernel believes of the path (see `dont_fragment`).
        underlay: what it has reported by now, see `asking_underlay`.
        search: what is known already.
    """
    while (size := search.next_size()) is not None:
        passed = await passes(probe, size)
        if passed is None:
            return None
        limit = underlay()
        if limit is not None and limit < size and size != search.sizes[-1]:
            # It may have passed in fragments, which cost more than they are worth, and get lost in many networks.
            search = search.at_most(limit)
        else:
            search = search.result(size, passed)
    return search.mtu


@contextlib.contextmanager
def asking_underlay(endpoint: Endpoint | None) -> Iterator[Callable[[], int | None]]:
    """Lets the routers on the way to this endpoint report that a full packet is too large for them.

    Sends one datagram that may not be fragmented and that no WireGuard takes for its own. Gives a function that
    tells the largest inner packet which goes there in one piece, as far as the kernel was told by now.
    """
    ip = endpoint.ip if endpoint is not None else None
    if endpoint is None or ip is None:
        yield no_report
        return
    is_v6 = isinstance(ip, IPv6Address)
    level, discover, mtu = _V6 if is_v6 else _V4
    with socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        # EMSGSIZE: the kernel knows it already. Anything else, and nothing will be reported.
        with contextlib.suppress(OSError):
            udp.setblocking(False)
            udp.setsockopt(level, discover, _DONT_FRAGMENT)
            udp.connect((str(ip), endpoint.port))
            udp.send(bytes(_FULL_PAYLOAD))

        def limit() -> int | None:
            try:
                # Routers report to a host once a second and not every packet (icmp_ratelimit): the report may have come
                # for another packet to the same address. The socket learns of it when it looks for its route again.
                udp.connect((str(ip), endpoint.port))
                return largest_inner(udp.getsockopt(level, mtu), is_v6=is_v6)
            except OSError:
                return None

        yield limit


def dont_fragment(probes: socket.socket) -> None:
    """Prepares the IPv4 socket that sends probes over the overlay: nothing on the way may cut them to pieces, and what
    the kernel believes of the way (a route's mtu) does not count."""
    level, discover, _ = _V4
    probes.setsockopt(level, discover, _IGNORE_ROUTE)


def largest_inner(outer: int, *, is_v6: bool) -> int:
    """The largest inner packet in an outer one of this size: WireGuard pads to 16 bytes, up to the device's mtu."""
    room = outer - (_OVERHEAD_V6 if is_v6 else _OVERHEAD_V4)
    return room if room >= DEFAULT_MTU else room // _PADDING * _PADDING


async def passes(probe: Callable[[int], Awaitable[bool]], size: int) -> bool | None:
    """Whether packets of this size pass. None where the smallest do not either: then it is no matter of size, but the
    path is silent now."""
    for _ in range(TRIES):
        if await probe(size):
            return True
        if size != SIZES[-1] and not await passes(probe, SIZES[-1]):
            return None
    return False
