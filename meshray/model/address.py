"""Names and addresses as types, parsed at the boundary.

>>> Endpoint.parse("head.example:51888")
Endpoint(host='head.example', port=51888)
>>> network = OverlayNetwork.parse("10.99.0.0/16")
>>> network.probe_address(IPv4Address("10.99.0.7"))
IPv4Address('10.99.128.7')
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

from meshray.errors import UsageError
from meshray.protocol.codec import WireError

DEFAULT_NETWORK = "10.99.0.0/16"
#: 16 addresses: the lower half holds 7 nodes. A smaller network is useless with a half for probes.
LONGEST_PREFIX = 28
#: A /8 is the largest private network there is.
SHORTEST_PREFIX = 8

_BRACKETED, _PORT = re.compile(r"\[([^\]]+)\](?::([0-9]{1,5}))?"), re.compile("[0-9]{1,5}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
#: The name or number of an interface after an IPv6 address (RFC 4007): as Linux allows it, but ASCII only. Python
#: accepts anything there, line breaks too.
_SCOPE = re.compile(r"[^\x00-\x20\x7f-\U0010ffff%/\[\]]{1,15}")


class NodeName(str):
    """A node's name: one host-name label (RFC 1123), lower case, at most 63 characters."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> NodeName:
        """Parse a name. Raises UsageError if the text is not a host-name label."""
        lowered = text.strip().lower()
        if not _LABEL.fullmatch(lowered):
            raise UsageError(
                "bad_name",
                f"{text[:80]!r} cannot be a node's name: it must be letters, digits and inner hyphens, "
                "at most 63 characters",
                hint="--name gpu-1",
            )
        return cls(lowered)

    @classmethod
    def from_hostname(cls, hostname: str) -> NodeName:
        """Return the nearest valid name to a machine's own host name; ``node`` if nothing is left."""
        label = re.sub(r"[^a-z0-9-]+", "-", hostname.split(".", maxsplit=1)[0].lower())[:63].strip("-")
        return cls(label or "node")


def overlay_address(text: str) -> IPv4Address:
    """Return the overlay address in a message. Raises WireError."""
    try:
        # This takes a tenth of the time that IPv4Address takes for a text.
        return IPv4Address(socket.inet_pton(socket.AF_INET, text))
    except (OSError, ValueError):
        raise WireError(f"{text[:15]!r} is not an IPv4 address") from None


@dataclass(frozen=True, order=True)
class Endpoint:
    """The address of a listener: an IP address or a DNS name, and a port (UDP and TCP alike)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Endpoint:
        """Parse ``host:port``, ``[v6]:port`` and, with a default port, a bare host.

        Raises:
            UsageError: the text has no host or no port, or is neither an address nor a DNS name.
        """
        host, port = text.strip(), default_port
        bracketed = _BRACKETED.fullmatch(host)
        if bracketed:
            host, digits = bracketed.group(1), bracketed.group(2)
            port = int(digits) if digits else port
        elif host.count(":") == 1:
            host, _, digits = host.partition(":")
            port = int(digits) if _PORT.fullmatch(digits) else 0
        if port is None or not 0 < port < 65536 or not _is_host(host):
            raise UsageError(
                "bad_endpoint",
                f"{text[:120]!r} is not HOST:PORT",
                hint="for example 203.0.113.7:51888, [2001:db8::7]:51888 or head.example.org:51888",
            )
        return cls(host, port)

    @classmethod
    def parse_readable(cls, texts: Iterable[str]) -> tuple[Endpoint, ...]:
        """Return the valid endpoints among these texts: one node's invalid ones must not make the whole map invalid."""
        found = []
        for text in texts:
            try:
                found.append(cls.parse(text))
            except UsageError:
                continue
        return tuple(found)

    @property
    def ip(self) -> IPv4Address | IPv6Address | None:
        """The host as an address; None if it is a DNS name."""
        return _as_ip(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# The same few hosts are tested several times per second.
@lru_cache(4096)
def _as_ip(host: str) -> IPv4Address | IPv6Address | None:
    _, percent, scope = host.partition("%")
    if percent and not _SCOPE.fullmatch(scope):
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_host(host: str) -> bool:
    if _as_ip(host) is not None:
        return True
    labels = host.rstrip(".").lower().split(".")
    # All-numeric names are mistyped IPv4 addresses (10.0.0.300) and never DNS names.
    return (
        host.isascii()
        and len(host) <= 253
        and all(_LABEL.fullmatch(label.replace("_", "-")) for label in labels)
        and not labels[-1].isdecimal()
    )


@dataclass(frozen=True)
class OverlayNetwork:
    """The overlay's addresses: the lower half is for nodes, and the upper half mirrors it for probes."""

    cidr: IPv4Network

    @classmethod
    def parse(cls, text: str) -> OverlayNetwork:
        """Parse a network. Raises UsageError if the text is not a private IPv4 network of a usable size."""
        try:
            cidr = IPv4Network(text)
        except ValueError as error:
            raise UsageError(
                "bad_network", f"{text[:80]!r} is not an IPv4 network: {error}", hint=f"--network {DEFAULT_NETWORK}"
            ) from None
        if not SHORTEST_PREFIX <= cidr.prefixlen <= LONGEST_PREFIX:
            raise UsageError(
                "bad_network",
                f"{cidr} has the wrong size: the prefix must be /{SHORTEST_PREFIX} to /{LONGEST_PREFIX}",
                hint=f"--network {DEFAULT_NETWORK}",
            )
        if not cidr.is_private and not cidr.subnet_of(IPv4Network("100.64.0.0/10")):
            raise UsageError(
                "bad_network",
                f"{cidr} holds public addresses, which would become unreachable",
                hint=f"--network {DEFAULT_NETWORK}",
            )
        return cls(cidr)

    @property
    def node_half(self) -> IPv4Network:
        """The half from which nodes get their addresses."""
        return next(self.cidr.subnets(prefixlen_diff=1))

    def node_addresses(self) -> Iterator[IPv4Address]:
        """Return every address that a node may get, lowest first."""
        return self.node_addresses_from(0)

    def node_addresses_from(self, lowest: int) -> Iterator[IPv4Address]:
        """Return every address that a node may get and whose number is not below ``lowest``, lowest first."""
        half = self.node_half
        return map(IPv4Address, range(max(lowest, int(half[1])), int(half[-1])))

    def probe_address(self, node: IPv4Address) -> IPv4Address:
        """Return the address of the upper half on which this node answers probes."""
        return IPv4Address(int(node) + self.node_half.num_addresses)

    def node_of_probe(self, address: IPv4Address) -> IPv4Address:
        """Return the address of the node that answers probes on this address; the inverse of `probe_address`."""
        return IPv4Address(max(0, int(address) - self.node_half.num_addresses))

    def __contains__(self, address: object) -> bool:
        return isinstance(address, IPv4Address) and address in self.cidr

    def __str__(self) -> str:
        return str(self.cidr)
