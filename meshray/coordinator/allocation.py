"""Allocate a new node's overlay address: the one that its name had, if allowed, else the lowest free one.

An address that was in use recently is not free.

>>> network = OverlayNetwork.parse("10.99.0.0/16")
>>> allocate(network, taken={IPv4Address("10.99.0.1")}, freed={}, now=0.0)
IPv4Address('10.99.0.2')
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from ipaddress import IPv4Address

from meshray.coordinator.member_index import TakenAddresses
from meshray.coordinator.records import Freed, Member, TokenRecord
from meshray.errors import MeshrayError
from meshray.model.address import NodeName, OverlayNetwork
from meshray.model.node import STATIC

#: The cool-down of an address after its node is removed, seconds: other nodes may still have it in a connection
#: table, a cached map or a running Ray, and would take the new node for the old one.
COOL_DOWN_S = 3600.0
NONE_TAKEN = TakenAddresses()


def is_cooling_down(freed_at: float, now: float) -> bool:
    """Return whether an address that was freed at that time is still cooling down.

    Setting the clock back prolongs the cool-down and never shortens it.
    """
    return now - freed_at < COOL_DOWN_S


def freed_by(member: Member, now: float, *, failed: bool) -> Freed | None:
    """Return the record of a removed member's address, which cools down; None if the address is free at once.

    A node whose agent never had the map, and with which no hub had a handshake, never used its address: no node can
    confuse it with the next owner. A static peer has no agent.

    Args:
        failed: its join failed.
    """
    was_used = member.had_map or member.node.seen is not None or STATIC in member.node.roles
    if not was_used:
        return None
    return Freed(now, str(member.node.name), failed)


def previous_address(
    freed: Mapping[IPv4Address, Freed], taken: Container[IPv4Address], name: NodeName, token: TokenRecord
) -> IPv4Address | None:
    """Return the last address of this name, if it is cooling down and this machine may have it; else None.

    That a machine chose a name does not prove that it is the previous machine. A token that is bound to the name does:
    its creator decided. After a failed join no proof is needed, because no node relies on that node.
    """
    candidates = [
        (entry.at, address)
        for address, entry in freed.items()
        if entry.name == name and address not in taken and (token.name == name or entry.failed)
    ]
    return max(candidates)[1] if candidates else None


def allocate(
    network: OverlayNetwork,
    taken: Container[IPv4Address],
    freed: Mapping[IPv4Address, Freed],
    now: float,
    lowest: TakenAddresses = NONE_TAKEN,
) -> IPv4Address:
    """Return the address for a new node.

    Args:
        taken: addresses of the enrolled nodes.
        freed: when each formerly used address became free.
        now: unix seconds.
        lowest: a range of taken addresses, in which only those that were left are looked at.

    Raises:
        MeshrayError: code ``network_full``.
    """
    any_cooling_down = False
    below = itertools.takewhile(lambda address: int(address) < lowest.start, network.node_addresses())
    left = map(IPv4Address, sorted(lowest.left))
    for address in itertools.chain(below, left, network.node_addresses_from(lowest.end)):
        if address in taken:
            continue
        if address not in freed or not is_cooling_down(freed[address].at, now):
            return address
        any_cooling_down = True
    if any_cooling_down:
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
