"""The traffic that a host's firewall must accept, in terms that every backend shares.

>>> from ipaddress import IPv4Network
>>> opening = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=True)
>>> Direction.OUT.comment(opening)
'meshray meshray0: out 10.99.0.0/16'
>>> direction_of_hook("forward", opening)
<Direction.THROUGH: 'through'>
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network

from meshray.model.ray_ports import RayPorts


@dataclass(frozen=True)
class Opening:
    """The traffic to accept: one interface, one network.

    Attributes:
        interface: the overlay interface.
        network: the overlay's addresses; nothing else is accepted from the interface.
        forwards: this node is a hub, which forwards packets from one overlay address to another.
        ports: TCP and UDP ports that members reach in addition to Ray's: the mesh's own, and those of ``--open``.
        everything: members reach every port (``--open all``).
        ray: the ports of Ray in this mesh; other nodes are assumed to use the same ports as this one.
        strict: drop what members may not reach, because the host's own rules accept everything on the interface
            (firewalld's trusted zone).
    """

    interface: str
    network: IPv4Network
    forwards: bool
    ports: tuple[int, ...] = ()
    everything: bool = False
    strict: bool = False
    ray: RayPorts = field(default_factory=RayPorts)

    @property
    def mark(self) -> str:
        """The beginning of the comment that marks a rule as ours."""
        return f"meshray {self.interface}:"


class Direction(Enum):
    """The direction of the packets that a rule concerns."""

    IN = "in"
    OUT = "out"
    THROUGH = "through"

    def comment(self, opening: Opening) -> str:
        """Return the comment of a rule: it marks the rule as ours and names the network, so that outdated rules are
        replaced.

        For rules of `IN` see `meshray.firewall.own_rules.admission_comment`.
        """
        return f"{opening.mark} {self.value} {opening.network}"


_DIRECTIONS = {
    "prerouting": Direction.IN,
    "input": Direction.IN,
    "forward": Direction.THROUGH,
    "output": Direction.OUT,
    "postrouting": Direction.OUT,
}


def direction_of_hook(hook: str, opening: Opening) -> Direction | None:
    """Return the direction of the overlay's packets in a chain on this hook; None if meshray ignores the chain."""
    direction = _DIRECTIONS.get(hook)
    return None if direction is Direction.THROUGH and not opening.forwards else direction
