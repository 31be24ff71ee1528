"""The facts about the addresses outside the overlay at which one node reaches the others."""

from __future__ import annotations

from dataclasses import dataclass

from meshray.doctor.firewall.facts import Drop

#: The next hop on the LAN does not answer with its MAC address.
NO_MAC = "no answer"


@dataclass(frozen=True)
class OuterAddress:
    """One address of another node, and what this machine does with packets to and from it.

    Attributes:
        node: the other node.
        endpoint: HOST:PORT.
        protocol: ``tcp`` for the coordinator, ``udp`` for WireGuard.
        interface: the interface by which packets leave; empty: they are refused, as in ``refused``.
        into_overlay: that is the overlay's own interface, which needs this address to carry anything.
        network: the destination of the chosen route, with ``table`` and ``rule`` as in `StolenRoute`.
        drops: the rules that drop packets from or to this address, and not those of other addresses.
        diverted: the rules that send packets to it, or from it to this machine, elsewhere.
        inbound: the other node dials this machine: ``endpoint`` is where its packets come from, its port unknown.
        next_hop: the address on the LAN to which packets are handed, with the kernel's opinion in ``neighbour``.
        neighbour: `NO_MAC` if that address does not answer, the MAC address if it was set by hand; else empty.
    """

    node: str = ""
    endpoint: str = ""
    protocol: str = ""
    interface: str = ""
    into_overlay: bool = False
    refused: str = ""
    network: str = ""
    table: int = 0
    rule: str = ""
    drops: tuple[Drop, ...] = ()
    diverted: tuple[str, ...] = ()
    inbound: bool = False
    next_hop: str = ""
    neighbour: str = ""

    @property
    def host(self) -> str:
        """The address without its port."""
        return self.endpoint.rpartition(":")[0]


@dataclass(frozen=True)
class OuterFacts:
    """The outer addresses of one node's peers.

    Attributes:
        unknown: why the rules are unknown; empty if they were read.
        down: the interfaces with an IPv4 address that are down or have no carrier.
        addresses: those for which a route or a rule was found that no other address has, and all others.
    """

    unknown: str = ""
    addresses: tuple[OuterAddress, ...] = ()
    down: tuple[str, ...] = ()
