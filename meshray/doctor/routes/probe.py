"""Ask the kernel where it would send packets for the overlay."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshray.doctor.context import Context
from meshray.doctor.routes.facts import MISSING, OWN, OtherNetwork, RoutingFacts, StolenRoute
from meshray.doctor.routes.lookup import OWN_PRIORITIES, look_up
from meshray.linux import overlay_netns
from meshray.linux.pyroute2_lazy import open_iproute
from meshray.model.meshmap import MeshMap
from meshray.runtime.preflight import Route, routes
from meshray.wireguard.config import RouteState
from meshray.wireguard.interface import Interface
from meshray.wireguard.routes import read_routes

if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute

#: A lookup takes 0.3 ms; more peers than these use the same few routes.
_MAX_TARGETS = 200
_STRICT = 1
#: The owner of an interface, by its name; WireGuard's are identified by their kind.
_OWNERS = (
    (re.compile(r"tailscale\d"), "Tailscale"),
    (re.compile(r"zt\w{8}"), "ZeroTier"),
    (re.compile(r"nebula|defined\d"), "Nebula"),
    (re.compile(r"docker|br-[0-9a-f]{12}$"), "Docker"),
    (re.compile(r"cni\d|flannel|cali|cilium|weave|kube|antrea|ovn"), "Kubernetes"),
    (re.compile(r"virbr|vmnet|vboxnet|lxc|lxd|podman"), "containers or virtual machines"),
    (re.compile(r"(tun|tap|utun|ppp)\d"), "a VPN"),
    (re.compile(r"wg"), "WireGuard"),
)


def measure(context: Context) -> RoutingFacts:
    """Return the facts of this node. Blocking."""
    overlay = context.mesh_map.mesh.network.cidr if context.mesh_map else None
    with open_iproute() as netlink:
        kinds = {interface["index"]: _interface(interface) for interface in netlink.get_links()}
        # The node's own namespace contains nothing but the path to the internet.
        others = tuple(_others(kinds.values(), context.interface, routes())) if overlay_netns.entered() is None else ()
        index = next((index for index, interface in kinds.items() if interface.name == context.interface), None)
        if context.mesh_map is None or context.ip is None or index is None:
            missing = f"there is no interface {context.interface}"
            unknown = "this machine is not a node" if context.ip is None else missing
            return RoutingFacts(str(overlay or ""), context.interface, unknown=unknown, others=others)
        network = context.mesh_map.mesh.network.cidr
        targets = list(_targets(context.mesh_map, context.ip))
        names = {index: interface.name for index, interface in kinds.items()}
        results = [_stolen_route(netlink, *target, own_index=index, names=names) for target in targets]
        uplinks, unanswered = _uplinks(netlink, context, names)
        own_route = _own_route(read_routes(index, [network]), network)
        first_rule = min(_foreign_priorities(netlink), default=0)
    return RoutingFacts(
        overlay=str(network),
        interface=context.interface,
        address=str(context.ip),
        own_route=own_route,
        contested=context.contested_routes,
        first_rule=first_rule,
        asked=len(targets),
        stolen=tuple(route for route in results if route is not None),
        others=others,
        overlay_rp_filter=_rp_filter(context.interface),
        uplinks=uplinks,
        unanswered=unanswered,
    )


def _own_route(found: Mapping[IPv4Network, RouteState], network: IPv4Network) -> str:
    state = found.get(network)
    return MISSING if state is None else state.elsewhere or OWN


def _foreign_priorities(netlink: IPRoute) -> list[int]:
    priorities = [int(rule.get_attr("FRA_PRIORITY") or 0) for rule in netlink.get_rules(family=socket.AF_INET)]
    return [priority for priority in priorities if priority not in OWN_PRIORITIES]


def _interface(message: Any) -> Interface:
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info is not None else None) or ""
    return Interface(str(message.get_attr("IFLA_IFNAME")), message["index"], kind, "", 0, up=True)


def _others(found: Any, own: str, known: list[Route]) -> Iterator[OtherNetwork]:
    for interface in found:
        owner = "" if interface.name == own else owner_of(interface.name, interface.kind)
        if owner:
            networks = [str(route.network) for route in known if route.interface == interface.name]
            yield OtherNetwork(
                interface.name, owner, tuple(dict.fromkeys(item for item in networks if item != "0.0.0.0/0"))
            )


def owner_of(name: str, kind: str) -> str:
    """Return the network software that creates interfaces like this; empty: not known.

    >>> owner_of("br-0123456789ab", "bridge"), owner_of("office", "wireguard"), owner_of("eth0", "")
    ('Docker', 'WireGuard', '')
    """
    if kind == "wireguard":
        return "WireGuard"
    return next((owner for pattern, owner in _OWNERS if pattern.match(name)), "")


def _targets(mesh_map: MeshMap, own: IPv4Address) -> Iterator[tuple[str, IPv4Address, IPv4Address]]:
    """Return (node, its address, the source address to use): overlay and probe address of every peer."""
    network = mesh_map.mesh.network
    peers = [node for node in mesh_map.nodes.values() if node.ip != own][:_MAX_TARGETS]
    for node in peers:
        yield str(node.name), node.ip, own
        yield str(node.name), network.probe_address(node.ip), network.probe_address(own)


def _stolen_route(
    netlink: IPRoute, node: str, target: IPv4Address, source: IPv4Address, *, own_index: int, names: dict[int, str]
) -> StolenRoute | None:
    """Return the route of an overlay address; None if it leaves by the overlay's interface."""
    chosen = look_up(netlink, target, source)
    if chosen is None or chosen.index == own_index:
        return None  # Without the source address: device_up reports that.
    interface = "" if chosen.refused else names.get(chosen.index, "an unknown interface")
    return StolenRoute(str(target), node, interface, chosen.refused, chosen.network, chosen.table, chosen.rule)


def _rp_filter(interface: str) -> int | None:
    """Return the effective rp_filter: the kernel uses the larger of the two (ip-sysctl.rst)."""
    try:
        values = [int(Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").read_text()) for name in ("all", interface)]
    except (OSError, ValueError):
        return None
    return max(values)


def _uplinks(netlink: IPRoute, context: Context, names: dict[int, str]) -> tuple[dict[str, int], dict[str, str]]:
    """Return a hub's interfaces with published addresses and their filter, and those that drop packets of nodes."""
    if not context.is_hub or context.mesh_map is None:
        return {}, {}
    me = next((node for node in context.mesh_map.nodes.values() if node.name == context.name), None)
    published = {endpoint.host for endpoint in me.endpoints} if me else set()
    peer_addresses = [IPv4Address(found[1]) for text in context.peer_endpoints.values() if (found := _V4.match(text))]
    uplinks: dict[str, int] = {}
    for message in netlink.get_addr(family=socket.AF_INET):
        if message.get_attr("IFA_LOCAL") in published:
            name = names.get(message["index"], "")
            uplinks[name] = _rp_filter(name) or 0
    answers = {_leaving(netlink, address, names) for address in peer_addresses} - {"", "lo"}
    other = next(iter(answers), "")
    unanswered = {
        name: other for name, value in uplinks.items() if value == _STRICT and answers and name not in answers
    }
    return uplinks, unanswered


_V4 = re.compile(r"(\d+\.\d+\.\d+\.\d+):\d+$")


def _leaving(netlink: IPRoute, address: IPv4Address, names: dict[int, str]) -> str:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        (answer,) = netlink.route("get", dst=str(address))
    except NetlinkError:
        return ""
    return names.get(answer.get_attr("RTA_OIF"), "")
