"""The facts about one node's routes to the overlay."""

from __future__ import annotations

from dataclasses import dataclass

#: What is in the main table in place of the overlay's own route; otherwise the value is where that leads.
OWN, MISSING = "own", "missing"


@dataclass(frozen=True)
class StolenRoute:
    """An overlay address whose packets do not go to the overlay.

    Attributes:
        address: a peer's address.
        node: the peer's name.
        interface: the interface by which they leave; empty: they are refused, as in ``refused``.
        network: the destination of the chosen route, with its ``table`` (number); empty: not known.
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
    """An interface of other network software.

    Attributes:
        owner: the software: Tailscale, WireGuard, Docker…
        networks: the networks that are routed to it.
    """

    interface: str = ""
    owner: str = ""
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoutingFacts:
    """Routes, policy rules, interfaces.

    Attributes:
        overlay: the mesh's network; empty: not known.
        address: this node's address in it.
        own_route: the route to the overlay's network in the main table: `OWN`, `MISSING`, or where it leads; empty: not
            examined.
        contested: the agent's reports of programs that keep removing its routes, one sentence each.
        first_rule: the smallest priority of a policy rule that is not the kernel's; 0: there is none.
        unknown: why the routes were not read; empty if they were.
        asked: how many addresses the kernel was asked about.
        overlay_rp_filter: the overlay interface's rp_filter, the larger of its own and of ``all``; None: not known.
        uplinks: on a hub: every interface with a published address, and its rp_filter.
        unanswered: on a hub: those interfaces on which a strict filter drops the peers' packets, with the interface by
            which the answer would leave.
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
