"""What meshray wants of a host's firewall, as words that every backend shares.

>>> from ipaddress import IPv4Network
>>> opening = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=True)
>>> Way.OUT.comment(opening)
'meshray meshray0: out 10.99.0.0/16'
>>> way_of_hook("forward", opening)
<Way.THROUGH: 'through'>
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network

from meshray.model.ray_ports import RayPorts


@dataclass(frozen=True)
class Opening:
    """What is to be let through: one interface, one network.

    Attributes:
        interface: the overlay interface.
        network: the overlay's addresses; nothing else is accepted from the interface.
        forwards: this node is a hub, it passes packets on from one overlay address to another.
        ports: TCP and UDP ports that members reach besides Ray's: the mesh's own, and those of ``--open``.
        everything: members reach every port (``--open all``).
        ray: the ports of Ray in this mesh; those of other nodes are taken to be like this node's.
        strict: what members are not to reach is dropped, because the host's own rules let all of the interface in
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
        """How every comment begins that makes a rule ours."""
        return f"meshray {self.interface}:"


class Way(Enum):
    """Which packets a rule is about."""

    IN = "in"
    OUT = "out"
    THROUGH = "through"

    def comment(self, opening: Opening) -> str:
        """Marks a rule as ours and says what it lets pass, so that one of another network is replaced.

        Of those for `IN` see `meshray.firewall.own_rules.admission_comment`.
        """
        return f"{opening.mark} {self.value} {opening.network}"


_WAYS = {
    "prerouting": Way.IN,
    "input": Way.IN,
    "forward": Way.THROUGH,
    "output": Way.OUT,
    "postrouting": Way.OUT,
}


def way_of_hook(hook: str, opening: Opening) -> Way | None:
    """Return what must pass a chain on this netfilter hook; None if the chain does not concern meshray."""
    way = _WAYS.get(hook)
    return None if way is Way.THROUGH and not opening.forwards else way
