"""The TCP ports of a node that only the overlay may reach, and which of them its members reach. Pure.

>>> web = Listening(8000, "0.0.0.0", of_ray=False)
>>> actor = Listening(41234, "0.0.0.0", of_ray=True)
>>> closed = decide([8000, range(10002, 20000)], [web, actor], never=[51888])
>>> closed.always, closed.in_use, closed.exempt
(((8000, 8000), (10002, 19999)), (('ip', ((41234, 41234),)),), (('ip', ((8000, 8000),)),))
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address

#: First and last port of each range, ascending, with a gap between any two.
Ranges = tuple[tuple[int, int], ...]
_EVERY_IPV4 = "0.0.0.0"  # noqa: S104 - read, not bound
#: All addresses of a family; any other scope is one address.
IPV4, IPV6 = "ip", "ip6"
#: Ports by scope, in the order of the scopes.
Scoped = tuple[tuple[str, Ranges], ...]


def family_of(scope: str) -> str:
    """Return `IPV4` or `IPV6`."""
    return scope if scope in (IPV4, IPV6) else IPV6 if ":" in scope else IPV4


@dataclass(frozen=True)
class Listening:
    """A TCP socket that waits for connections.

    Attributes:
        address: the address to which it is bound, "0.0.0.0" or "::" for all.
        of_ray: whether it belongs to a Ray process of this node; None: it belongs to no process (a socket of the
            kernel, as NFS has), or its process has just ended.
        only_ipv6: it is bound to "::" and accepts no IPv4.
    """

    port: int
    address: str
    of_ray: bool | None
    only_ipv6: bool = False

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.address == "::1" or self.address.removeprefix("::ffff:").startswith("127.")

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes at which it answers: whole families, or its one address."""
        if self.address == "::":
            return (IPV6,) if self.only_ipv6 else (IPV4, IPV6)
        return (IPV4,) if self.address == _EVERY_IPV4 else (str(ip_address(self.address)),)


@dataclass(frozen=True)
class Closed:
    """The ports that only the overlay and the node itself may reach.

    Attributes:
        always: connections to these are refused, whether or not a program listens. Answers to connections that the node
            opens itself are still accepted: such a connection may use one of these as its local port.
        in_use: other ports on which Ray listens now. Every packet to them is dropped, including packets of existing
            connections; no connection that the node opened itself can use one of these as its local port.
        exempt: ports of ``always`` on which other programs listen: their rules are unchanged.
        members: the ports that members of the mesh reach, even where the host's own rules drop them: Ray's current
            ports. None: every port, because the ports have not been read yet.
    """

    always: Ranges = ()
    in_use: Scoped = ()
    exempt: Scoped = ()
    members: Ranges | None = None

    @property
    def digest(self) -> str:
        """A short name for exactly these closed ports; it identifies rules that are up to date."""
        return digest((self.always, self.in_use, self.exempt))

    @property
    def foreign(self) -> frozenset[int]:
        """The ports of ``exempt``, which another program uses on some address."""
        return frozenset(port for _, found in self.exempt for first, last in found for port in range(first, last + 1))

    def __bool__(self) -> bool:
        return bool(self.always or self.in_use)


def digest(value: object) -> str:
    """Return a short name for a value; equal values have equal names in every process."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def decide(
    always: Iterable[int | range],
    listening: Iterable[Listening],
    never: Collection[int],
    *,
    network: IPv4Network | None = None,
    chosen: range = range(0),
    exposed: Collection[int] = (),
) -> Closed:
    """Return the ports to close, and those of them that members reach.

    The address and port of another program are never closed, neither because the port is in Ray's range nor because Ray
    listens on the same port at another address or in another family. Where both listen at the same address and port, it
    is closed as Ray's.

    Args:
        always: the configured ports of Ray, and its default ports.
        listening: all listening sockets of this machine.
        never: the mesh's own ports.
        network: the overlay's addresses; None: what members reach is not decided.
        chosen: the kernel's ephemeral ports, which Ray's processes may open at any time: members reach those that no
            other program uses.
        exposed: ports of Ray that a user leaves open to all.
    """
    outward = [socket for socket in listening if not socket.is_local]
    wanted = without(ranges(always), never)
    rays = {(scope, socket.port) for socket in outward if socket.of_ray for scope in socket.scopes}
    rays = {(scope, port) for scope, port in rays if port not in never}
    others = {(scope, socket.port) for socket in outward if socket.of_ray is False for scope in socket.scopes}
    exempt = {(scope, port) for scope, port in others if contains(wanted, port) and not _overlaps(scope, port, rays)}
    return Closed(
        without(wanted, exposed),
        _scoped((scope, port) for scope, port in rays if not contains(wanted, port) and port not in exposed),
        _scoped((scope, port) for scope, port in exempt if port not in exposed),
        _members(outward, rays, network, (wanted, _scoped(exempt)), chosen) if network is not None else None,
    )


def _overlaps(scope: str, port: int, rays: Collection[tuple[str, int]]) -> bool:
    """Return whether Ray listens on this port at this address, or either listens on it at all addresses of the family.

    The kernel allows this only to sockets of one user that set SO_REUSEPORT.
    """
    family = family_of(scope)
    return any(
        port == other_port and (other == scope or (family_of(other) == family and family in (other, scope)))
        for other, other_port in rays
    )


def _members(
    outward: Iterable[Listening],
    rays: Collection[tuple[str, int]],
    network: IPv4Network,
    kept: tuple[Ranges, Scoped],
    chosen: range,
) -> Ranges:
    """Return the ports that members reach. Overlay traffic is IPv4 to overlay addresses: only sockets that answer there
    count.

    Args:
        kept: `Closed.always` and `Closed.exempt`.
    """
    wanted, exempt = kept

    def answers(scope: str) -> bool:
        return scope == IPV4 or (family_of(scope) == IPV4 and scope != IPV4 and ip_address(scope) in network)

    in_use = {port for scope, port in rays if answers(scope)}
    foreign = {port for scope, found in exempt if answers(scope) for pair in found for port in range(*_bounds(pair))}
    taken = {socket.port for socket in outward if not socket.of_ray and any(map(answers, socket.scopes))}
    return ranges([*_items(without(wanted, foreign)), *_items(without(ranges([chosen]), taken)), *in_use])


def _bounds(pair: tuple[int, int]) -> tuple[int, int]:
    return pair[0], pair[1] + 1


def _scoped(found: Iterable[tuple[str, int]]) -> Scoped:
    ports: dict[str, list[int]] = {}
    for scope, port in found:
        ports.setdefault(scope, []).append(port)
    return tuple((scope, ranges(ports[scope])) for scope in sorted(ports))


def described(found: Ranges) -> str:
    """Return the ranges as text for users.

    >>> described(((1, 3), (7, 7)))
    '1-3, 7'
    """
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def ranges(ports: Iterable[int | range]) -> Ranges:
    """Return the ports as the smallest number of ranges.

    >>> ranges([3, 1, 2, range(7, 9)])
    ((1, 3), (7, 8))
    """
    pairs = ((item.start, item.stop - 1) if isinstance(item, range) else (item, item) for item in ports)
    found: list[tuple[int, int]] = []
    for first, last in sorted(pair for pair in pairs if pair[0] <= pair[1]):
        if found and found[-1][1] >= first - 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def _items(found: Ranges) -> list[int | range]:
    return [range(first, last + 1) for first, last in found]


def without(found: Ranges, ports: Collection[int]) -> Ranges:
    """Return the ranges without these ports.

    >>> without(((1, 5),), {3, 9})
    ((1, 2), (4, 5))
    """
    left: list[tuple[int, int]] = []
    for first, last in found:
        start = first
        for port in sorted(port for port in set(ports) if first <= port <= last):
            if start < port:
                left.append((start, port - 1))
            start = port + 1
        if start <= last:
            left.append((start, last))
    return tuple(left)


def contains(found: Ranges, port: int) -> bool:
    """Return whether one of the ranges contains the port."""
    return any(first <= port <= last for first, last in found)
