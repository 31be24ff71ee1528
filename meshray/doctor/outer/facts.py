"""The facts about the addresses outside the overlay at which one node reaches the others."""

from __future__ import annotations

from dataclasses import dataclass

from meshray.doctor.firewall.facts import Drop


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
        diverted: the rules that send this machine's packets to it elsewhere.
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

    @property
    def host(self) -> str:
        """The address without its port."""
        return self.endpoint.rpartition(":")[0]


@dataclass(frozen=True)
class OuterFacts:
    """The outer addresses of one node's peers.

    Attributes:
        unknown: why the rules are unknown; empty if they were read.
        addresses: those for which a route or a rule was found that no other address has, and all others.
    """

    unknown: str = ""
    addresses: tuple[OuterAddress, ...] = ()
