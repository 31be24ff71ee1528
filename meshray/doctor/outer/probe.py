"""Ask the kernel and the host's rules about each address outside the overlay at which this node reaches another."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from meshray.doctor.context import Context
from meshray.doctor.firewall.facts import Drop
from meshray.doctor.outer.facts import NO_MAC, OuterAddress, OuterFacts
from meshray.doctor.routes.lookup import Chosen, look_up
from meshray.firewall.inspect import Flow, HostRules, set_contains
from meshray.linux import overlay_netns
from meshray.linux.pyroute2_lazy import open_iproute
from meshray.model.address import Endpoint

if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink import nlmsg

#: A look-up takes 0.3 ms; the routes of more peers than these are rarely different.
_MAX_ADDRESSES = 200
#: The states of a neighbour in linux/neighbour.h: NUD_INCOMPLETE and NUD_FAILED; NUD_PERMANENT.
_UNANSWERED, _SET_BY_HAND = 0x01 | 0x20, 0x80
#: For a coordinator with many interfaces, the first addresses are sufficient.
_COORDINATORS = 6


def measure(context: Context, host_rules: Callable[[], HostRules]) -> OuterFacts:
    """Return the facts of this node; ``host_rules`` reads the host's rules. Blocking."""
    targets = list(dict.fromkeys(_targets(context)))[:_MAX_ADDRESSES]
    if not targets:
        return OuterFacts()
    # Only root sees the rules; the namespace of a node without root has none of other programs.
    rules = host_rules() if os.geteuid() == 0 and overlay_netns.entered() is None else None
    with open_iproute() as netlink:
        links = {link["index"]: link for link in netlink.get_links()}
        names = {index: str(link.get_attr("IFLA_IFNAME")) for index, link in links.items()}
        neighbours = _neighbours(netlink)
        routed = [_routed(netlink, target, context.interface, names, neighbours) for target in targets]
        down = tuple(sorted(_down(netlink, links) - {context.interface}))
    if rules is None:
        return OuterFacts("only root can read the host's rules", tuple(routed), down)
    found = tuple(_with_rules(rules, one, context) for one in routed)
    return OuterFacts("; ".join(rules.problems), found, down)


def _neighbours(netlink: IPRoute) -> Mapping[tuple[int, str], str]:
    """Return `NO_MAC`, or a MAC address that was set by hand, by interface and address; others are left out."""
    found = {}
    for message in netlink.get_neighbours(family=socket.AF_INET):
        key = (int(message["ifindex"]), str(message.get_attr("NDA_DST")))
        if message["state"] & _UNANSWERED:
            found[key] = NO_MAC
        elif message["state"] & _SET_BY_HAND:
            found[key] = str(message.get_attr("NDA_LLADDR"))
    return found


def _down(netlink: IPRoute, links: Mapping[int, nlmsg]) -> set[str]:
    """Return the names of the interfaces with an IPv4 address that carry nothing now."""
    addressed = {int(message["index"]) for message in netlink.get_addr(family=socket.AF_INET)}
    return {
        str(link.get_attr("IFLA_IFNAME"))
        for index, link in links.items()
        if index in addressed and link.get_attr("IFLA_OPERSTATE") in ("DOWN", "LOWERLAYERDOWN")
    }


def _targets(context: Context) -> Iterator[tuple[str, str, str]]:
    """Yield (node, HOST:PORT, protocol) of each IPv4 address outside the overlay and this machine.

    On the coordinator's machine the other nodes' addresses count twice: for UDP, and as sources of TCP.
    """
    overlay = context.mesh_map.mesh.network.cidr if context.mesh_map is not None else None
    coordinator = context.mesh_map.coordinator if context.mesh_map is not None else None
    if coordinator is not None and not context.hosts_coordinator:
        for endpoint in context.coordinators[:_COORDINATORS]:
            if _is_outside(endpoint, overlay):
                yield str(coordinator.name), str(endpoint), "tcp"
    for name, text in {**context.peer_endpoints, **context.dialled}.items():
        if _is_outside(Endpoint.parse(text), overlay):
            yield name, text, "udp"
            if context.hosts_coordinator:
                yield name, text, "tcp"


def _is_outside(endpoint: Endpoint, overlay: IPv4Network | None) -> bool:
    address = endpoint.ip
    return isinstance(address, IPv4Address) and not address.is_loopback and (overlay is None or address not in overlay)


def _routed(
    netlink: IPRoute,
    target: tuple[str, str, str],
    overlay: str,
    names: Mapping[int, str],
    neighbours: Mapping[tuple[int, str], str],
) -> OuterAddress:
    """Return the address with the kernel's route to it; ``names``: of the interfaces, by index."""
    node, text, protocol = target
    host = Endpoint.parse(text).host
    chosen = look_up(netlink, IPv4Address(host)) or Chosen()
    interface = names.get(chosen.index, "")
    next_hop = chosen.gateway or host
    return OuterAddress(
        node=node,
        endpoint=text,
        protocol=protocol,
        interface=interface,
        into_overlay=interface == overlay,
        refused=chosen.refused,
        network=chosen.network,
        table=chosen.table,
        rule=chosen.rule,
        next_hop=next_hop if interface else "",
        neighbour=neighbours.get((chosen.index, next_hop), ""),
    )


def _with_rules(rules: HostRules, one: OuterAddress, context: Context) -> OuterAddress:
    """Return the address with the host's rules that concern it."""
    address, port = IPv4Address(one.host), Endpoint.parse(one.endpoint).port
    inbound = one.protocol == "tcp" and context.hosts_coordinator
    if inbound:
        flow = Flow(address, one.protocol, own_port=context.mesh_port)
    else:
        flow = Flow(address, one.protocol, port, context.listen_port if one.protocol == "udp" else 0)
    drops = tuple(Drop(item.where, item.cause, item.commands) for item in rules.of_address(flow, set_contains))
    return replace(one, drops=drops, diverted=tuple(rules.diversions(flow)), inbound=inbound)
