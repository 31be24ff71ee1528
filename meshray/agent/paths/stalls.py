"""To which overlay addresses TCP sends in vain: data was sent again and again, and nobody acknowledged it.

A path that became too narrow looks so from its sender's end, and only from there: small packets pass, full ones do not.

>>> stalls = Stalls()
>>> stalls.look()
{IPv4Address('10.99.0.7')}
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

from meshray.linux.sockets import timeouts, unacknowledged

#: Data that was sent again twice, 0.6 s after the first time on a fast path. One packet may be lost.
TIMES = 2
#: Of the network namespace in which the calling thread is.
_NETSTAT = Path("/proc/thread-self/net/netstat")


class Stalls:
    """Asks the kernel for connections only where its counter says that some stalled since the last look: going through
    all connections costs the kernel milliseconds on a machine with much memory."""

    def __init__(self) -> None:
        self._timeouts: int | None = None

    def look(self) -> set[IPv4Address]:
        """The addresses to which data is not acknowledged now. Blocks for a moment; to be called inside the overlay's
        network namespace. Where the kernel does not tell, there are none."""
        try:
            counted = timeouts(_NETSTAT.read_text())
            before, self._timeouts = self._timeouts, counted
            return set() if counted == before else _ipv4(unacknowledged(TIMES))
        except OSError:
            return set()


def _ipv4(addresses: set[str]) -> set[IPv4Address]:
    found = set()
    for address in addresses:
        try:
            found.add(IPv4Address(address))
        except AddressValueError:
            continue
    return found
