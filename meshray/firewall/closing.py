"""Which TCP ports of a node are closed to all but the overlay. Pure.

>>> web = Listening(8000, "0.0.0.0", of_ray=False)
>>> actor = Listening(41234, "0.0.0.0", of_ray=True)
>>> closed = decide([8000, range(10002, 20000)], [web, actor], never=[51888])
>>> closed.always, closed.heard
(((10002, 19999),), ((41234, 41234),))
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

#: First and last port of each range, ascending, with a gap between any two.
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Listening:
    """A TCP socket that waits for connections.

    Attributes:
        address: to which it is bound, "0.0.0.0" or "::" for all.
        of_ray: whether a process of this node's Ray has it; None: no process has it (the kernel's own, as NFS has), or
            its process has just ended.
    """

    port: int
    address: str
    of_ray: bool | None

    @property
    def is_local(self) -> bool:
        """Nobody outside of this machine reaches it."""
        return self.address == "::1" or self.address.removeprefix("::ffff:").startswith("127.")


@dataclass(frozen=True)
class Closed:
    """What is closed to all but the overlay and the node itself.

    Attributes:
        always: nobody opens a connection to these, whether or not somebody listens. Answers to connections that the
            node opens itself still come in: its own end of one may have such a port.
        heard: where else Ray listens now. Whatever comes to these is dropped, connections from before included; no
            connection that the node opened itself can have such a port at its own end.
    """

    always: Ranges = ()
    heard: Ranges = ()

    @property
    def digest(self) -> str:
        """A short name for exactly these ports, by which rules are known to be the right ones."""
        return hashlib.sha256(repr((self.always, self.heard)).encode()).hexdigest()[:12]

    def __bool__(self) -> bool:
        return bool(self.always or self.heard)


def decide(always: Iterable[int | range], listening: Iterable[Listening], never: Collection[int]) -> Closed:
    """What to close.

    A port that somebody else serves to the outside stays as it was: Ray cannot have it as well. Where both have it, on
    different addresses, Ray's counts.

    Args:
        always: the ports that Ray is told to use, and those that it would choose by itself.
        listening: all that listens on this machine.
        never: the mesh's own.
    """
    outward = [socket for socket in listening if not socket.is_local]
    rays = {socket.port for socket in outward if socket.of_ray} - set(never)
    others = {socket.port for socket in outward if socket.of_ray is False} - rays
    wanted = {port for item in always for port in (item if isinstance(item, range) else (item,))}
    return Closed(ranges(wanted - others - set(never)), ranges(rays - wanted))


def described(found: Ranges) -> str:
    """For people.

    >>> described(((1, 3), (7, 7)))
    '1-3, 7'
    """
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def ranges(ports: Iterable[int]) -> Ranges:
    """The same ports as few ranges.

    >>> ranges([3, 1, 2, 7])
    ((1, 3), (7, 7))
    """
    found: list[tuple[int, int]] = []
    for port in sorted(set(ports)):
        if found and found[-1][1] == port - 1:
            found[-1] = (found[-1][0], port)
        else:
            found.append((port, port))
    return tuple(found)
