"""The endpoints at which this node's WireGuard may be reached, as reported to the coordinator.

>>> await read_endpoints(51888, OverlayNetwork.parse("10.99.0.0/16"))
(Endpoint(host='192.168.1.20', port=51888), Endpoint(host='2001:db8::7', port=51888))
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from meshray.linux.addresses import interface_addresses
from meshray.model.address import Endpoint, OverlayNetwork

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

#: Each candidate costs a round of the search for a direct path; more than these of one family are useless.
MOST_PER_FAMILY = 4
#: Documentation addresses, used only to ask the kernel for the source address; nothing is sent there.
_FAR_AWAY = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
#: Unique local, and the deprecated site local: private networks, which two sites assign independently.
_PRIVATE_V6 = (IPv6Network("fc00::/7"), IPv6Network("fec0::/10"))


def own_endpoints(
    addresses: Iterable[Address], port: int, network: OverlayNetwork, preferred: Iterable[Address] = ()
) -> tuple[Endpoint, ...]:
    """Return the endpoints to report: IPv4 first, in each family the preferred address first.

    Args:
        addresses: the interfaces' addresses; see `meshray.linux.addresses.reachable`.
        port: the WireGuard device's current UDP port.
        network: the overlay; its addresses cannot carry its own packets.
        preferred: the source addresses of this machine. With IPv6's privacy addresses that is a temporary one, and a
            firewall in between opens only for the address from which a packet was sent.
    """
    usable = [address for address in dict.fromkeys((*preferred, *addresses)) if _is_candidate(address, network)]
    families = [[address for address in usable if address.version == version] for version in (4, 6)]
    return tuple(Endpoint(str(address), port) for family in families for address in family[:MOST_PER_FAMILY])


async def read_endpoints(port: int, network: OverlayNetwork) -> tuple[Endpoint, ...]:
    """Return the current endpoints; none if the kernel does not answer."""
    try:
        addresses = await asyncio.to_thread(interface_addresses)
    except OSError as error:
        log.warning("the addresses of this machine cannot be read: %s", error)
        return ()
    return own_endpoints(addresses, port, network, preferred_sources())


def preferred_sources() -> list[Address]:
    """Return the source addresses that this machine would use for distant hosts; sends no packet."""
    found = []
    for family, far in _FAR_AWAY:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as udp:
                udp.connect((far, 9))
                found.append(ip_address(udp.getsockname()[0]))
        except OSError:  # No route, or no such protocol on this machine.
            continue
    return found


def _is_candidate(address: Address, network: OverlayNetwork) -> bool:
    if address in network or address.is_loopback or address.is_link_local or address.is_unspecified:
        return False
    return not any(address in private for private in _PRIVATE_V6)
