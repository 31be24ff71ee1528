"""Choose the addresses of a machine for tokens and the map (pure).

A token must fit into a line, and every reader of the map has its limits: a head may have hundreds of addresses
(containers, virtual networks), of which a few are sufficient to reach it.

>>> choose_endpoints([], [Endpoint("192.168.1.5", 51888), Endpoint("203.0.113.7", 51888)])
(Endpoint(host='203.0.113.7', port=51888), Endpoint(host='192.168.1.5', port=51888))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import chain, zip_longest

from meshray.errors import UsageError
from meshray.model.address import Endpoint, OverlayNetwork

#: No node tries more endpoints of another than this.
MAX_ENDPOINTS = 16
#: RFC 1918, 6598 (carriers' NAT), 4193, and the deprecated site local addresses. Two sites assign them independently.
_PRIVATE = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10"))
)
#: "This host on this network" (RFC 6890); Linux uses 0.0.0.0 for the machine itself.
_THIS_NETWORK = IPv4Network("0.0.0.0/8")
_BROADCAST = IPv4Address("255.255.255.255")
#: RFC 6052: the IPv4 address is in the last 32 bits.
_NAT64 = IPv6Network("64:ff9b::/96")


def choose_endpoints(configured: Sequence[Endpoint], found: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Return at most `MAX_ENDPOINTS`: the user's, then public ones, then private ones.

    If there are too many, each kind (IPv4 or IPv6, public or private) keeps its first ones in turn, so that no kind is
    lost.

    Raises:
        UsageError: the user's alone are more than that.
    """
    own = require_few(configured, "--advertise")
    kinds: list[list[Endpoint]] = [[], [], [], []]
    for endpoint in dict.fromkeys(found):
        if endpoint not in own:
            kinds[_kind(endpoint)].append(endpoint)
    in_turn = [endpoint for endpoint in chain.from_iterable(zip_longest(*kinds)) if endpoint is not None]
    kept = set(in_turn[: MAX_ENDPOINTS - len(own)])
    return (*own, *(endpoint for kind in kinds for endpoint in kind if endpoint in kept))


def require_few(configured: Sequence[Endpoint], option: str) -> tuple[Endpoint, ...]:
    """Return the user's endpoints of this option, each once. Raises UsageError if there are too many."""
    own = tuple(dict.fromkeys(configured))
    if len(own) > MAX_ENDPOINTS:
        raise UsageError(
            "too_many_addresses",
            f"{option} was given {len(own)} addresses; others take at most {MAX_ENDPOINTS} of one node",
            hint=f"give only those at which others reach this machine: {option} {own[0]}",
        )
    return own


def reachable_ip(
    ip: IPv4Address | IPv6Address, network: OverlayNetwork, *, loopback: bool = False
) -> IPv4Address | IPv6Address | None:
    """Return the address in its plain form if it can be another machine's, None otherwise.

    These cannot be: link-local addresses (169.254.169.254 answers with a cloud's metadata, and an IPv6 one needs the
    name of an interface here), multicast, broadcast and unspecified ones, those of the overlay itself, and those of
    this machine. The same applies to IPv4 addresses inside IPv6 ones.

    Args:
        loopback: whether this machine's loopback addresses are allowed.
    """
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            return None
        ip = ip.ipv4_mapped or ip
    if isinstance(ip, IPv6Address):
        inner = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.sixtofour
        if inner is not None and reachable_ip(inner, network) is None:
            return None
    elif ip in _THIS_NETWORK or ip == _BROADCAST:
        return None
    if ip in network or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return None
    return None if ip.is_loopback and not loopback else ip


def is_public(endpoint: Endpoint, network: OverlayNetwork) -> bool:
    """Return whether distant machines may reach it: a full name, or an address neither private nor of the overlay."""
    ip = endpoint.ip
    if ip is None:
        return "." in endpoint.host and not endpoint.host.endswith((".local", ".localhost", ".internal"))
    plain = reachable_ip(ip, network)
    return plain is not None and not any(plain in private for private in _PRIVATE)


def _kind(endpoint: Endpoint) -> int:
    """Return the sort key: public before private, IPv4 before IPv6; a name counts as public."""
    ip = endpoint.ip
    if ip is None:
        return 0
    return (0 if ip.is_global else 2) + (0 if ip.version == 4 else 1)
