"""Which overlay address a new node gets: the lowest that is free and was not in use lately.

>>> network = OverlayNetwork.parse("10.99.0.0/16")
>>> allocate(network, taken={IPv4Address("10.99.0.1")}, freed={}, now=0.0)
IPv4Address('10.99.0.2')
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from ipaddress import IPv4Address

from meshray.errors import MeshrayError
from meshray.model.address import OverlayNetwork

#: So long an address rests after its node went away, seconds: other nodes may still have it in a
#: connection table, a cached map or a running Ray, and would take the new node for the old one.
COOL_DOWN_S = 3600.0


def cools_down(freed_at: float, now: float) -> bool:
    """Whether an address that was freed then still rests.

    A clock that was set back makes the rest longer, never shorter.
    """
    return now - freed_at < COOL_DOWN_S


def allocate(
    network: OverlayNetwork, taken: Container[IPv4Address], freed: Mapping[IPv4Address, float], now: float
) -> IPv4Address:
    """The address for a new node.

    Args:
        taken: addresses of the nodes that are enrolled.
        freed: when each address that was once in use became free, unix seconds.

    Raises:
        MeshrayError: code ``network_full``.
    """
    resting = False
    for address in network.node_addresses():
        if address in taken:
            continue
        if address not in freed or not cools_down(freed[address], now):
            return address
        resting = True
    if resting:
        raise MeshrayError(
            "network_full",
            f"{network} has no free address: the last ones were in use within the past hour",
            hint="try again in an hour",
        )
    raise MeshrayError(
        "network_full",
        f"{network} has no free address left",
        hint="remove nodes that are gone: meshray node rm NODE",
    )
