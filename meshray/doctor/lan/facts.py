"""The facts about the addresses that one node needs on the networks to which it is attached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """An address that more than one machine claims.

    Attributes:
        address: an address of this machine by which it reaches other nodes, that of its gateway, or the coordinator's.
        interface: the interface to the network where it was asked for.
        mac: the MAC address of that interface.
        others: the MAC addresses of other machines that answer for the address; empty for IPv6, where the kernel
            reports no more than that another machine has it.
        is_gateway: the address is the gateway's, so that one of ``others`` is right.
        is_coordinator: the same for the coordinator's address, which is on this LAN.
    """

    address: str = ""
    interface: str = ""
    mac: str = ""
    others: tuple[str, ...] = ()
    is_gateway: bool = False
    is_coordinator: bool = False


@dataclass(frozen=True)
class LanFacts:
    """Whether each address has one owner.

    Attributes:
        unknown: why the networks were not asked; empty if they were.
        asked: the addresses of this machine that were asked for.
        claims: those, and those of gateways and the coordinator, that more than one machine claims.
    """

    unknown: str = ""
    asked: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
