"""What one node finds out about the routes to the overlay."""

from __future__ import annotations

from dataclasses import dataclass

#: What stands in the main table where the overlay's own route should be; else it is told where that leads.
OWN, MISSING = "own", "missing"


@dataclass(frozen=True)
class StolenRoute:
    """An overlay address whose packets go elsewhere.

    Attributes:
        address: of a peer.
        node: its name.
        interface: by which they leave; empty: they are refused, as ``refused`` says.
        network: of the route that was chosen, with its ``table`` (number); empty: not known.
        rule: the policy rule that led there; empty: one of the kernel's own.
    """

    address: str = ""
    node: str = ""
    interface: str = ""
    refused: str = ""
    network: str = ""
    table: int = 0
    rule: str = ""


@dataclass(frozen=True)
class OtherNetwork:
    """An interface of somebody else's network software.

    Attributes:
        owner: whose it is: Tailscale, WireGuard, Docker…
        networks: that are routed to it.
    """

    interface: str = ""
    owner: str = ""
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoutingFacts:
    """Routes, policy rules, interfaces.

    Attributes:
        overlay: the mesh's network; empty: none is known.
        address: this node's own in it.
        own_route: what has the overlay's destination in the main table: `OWN`, `MISSING`, or where it leads; empty: not
            looked at.
        contested: what the agent tells of programs that keep removing its routes, one sentence each.
        first_rule: the smallest priority of a policy rule that is not the kernel's; 0: there is none.
        unknown: why the routes were not asked; empty where they were.
        asked: how many addresses the kernel was asked about.
        overlay_rp_filter: of the overlay interface, the larger of its own and of ``all``; None: not known.
        uplinks: of a hub: every interface with an address that is published, and its rp_filter.
        unanswered: of a hub: the interfaces among them on which a strict filter drops the peers' packets, with the
            interface by which the answer would leave.
    """

    overlay: str = ""
    interface: str = ""
    unknown: str = ""
    address: str = ""
    own_route: str = ""
    contested: tuple[str, ...] = ()
    first_rule: int = 0
    asked: int = 0
    stolen: tuple[StolenRoute, ...] = ()
    others: tuple[OtherNetwork, ...] = ()
    overlay_rp_filter: int | None = None
    uplinks: dict[str, int] | None = None
    unanswered: dict[str, str] | None = None
