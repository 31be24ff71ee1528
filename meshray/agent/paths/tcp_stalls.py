"""Find the overlay addresses for which TCP stalls: data was retransmitted and never acknowledged.

Only the sender of a path that became too narrow sees this: small packets pass, full ones do not.

>>> stalls = Stalls()
>>> stalls.find()
{IPv4Address('10.99.0.7')}
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

from meshray.linux.sockets import timeouts, unacknowledged

#: Data that was retransmitted twice, 0.6 s after the first time on a fast path. One packet may be lost.
TIMES = 2
#: The counters of the calling thread's network namespace.
_NETSTAT = Path("/proc/thread-self/net/netstat")


class Stalls:
    """Read the connections from the kernel only when its counter shows stalls since the last look.

    Listing all connections costs the kernel milliseconds on a machine with much memory.
    """

    def __init__(self) -> None:
        self._timeouts: int | None = None

    def find(self) -> set[IPv4Address]:
        """Return the addresses to which data is not acknowledged now; none if the kernel does not answer.

        Blocks for a moment. Call it inside the overlay's network namespace.
        """
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
