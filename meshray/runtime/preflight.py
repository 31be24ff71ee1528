"""The requirements that this machine must meet before anything is changed on it.

>>> found = clash(IPv4Network("10.99.0.0/16"), [Route(IPv4Network("10.99.7.0/24"), "tun0")])
>>> str(found)
'10.99.7.0/24 on tun0'
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from meshray.defaults import INTERFACE
from meshray.errors import MeshrayError
from meshray.linux import pod
from meshray.linux.ports import require_free
from meshray.linux.pyroute2_lazy import open_iproute
from meshray.model.address import DEFAULT_NETWORK, OverlayNetwork

#: Offered in place of a network that overlaps, the first that is free.
_ALTERNATIVES = (
    "10.99.0.0/16",
    "10.201.0.0/16",
    "172.29.0.0/16",
    "192.168.192.0/20",
    "100.127.0.0/16",
    "10.254.0.0/16",
)
#: A default route, and the two halves into which VPN programs split it, yield to every other route.
_LONGEST_DEFAULT = 1
#: RT_TABLE_MAIN, RT_TABLE_LOCAL and RTN_UNICAST of linux/rtnetlink.h.
_MAIN_TABLE = 254
_LOCAL_TABLE = 255
_UNICAST = 1


@dataclass(frozen=True)
class Route:
    """Where packets to ``network`` go now.

    Attributes:
        is_main: it is in the main routing table, not in one of a VPN's own.
    """

    network: IPv4Network
    interface: str
    is_main: bool = True

    def __str__(self) -> str:
        return f"{self.network} on {self.interface or 'no interface'}"


def overlap(network: IPv4Network, routes: Iterable[Route]) -> Route | None:
    """Return the first route that shares addresses with the network; default routes and our own do not count."""
    return next(
        (
            route
            for route in routes
            if route.network.prefixlen > _LONGEST_DEFAULT
            and route.interface != INTERFACE
            and route.network.overlaps(network)
        ),
        None,
    )


def clash(network: IPv4Network, routes: Iterable[Route]) -> Route | None:
    """Return the first route that would take packets from the overlay, or lose its own to it.

    A wider one of the main table (10.0.0.0/8 of an office's VPN) goes on for all other addresses: the longer prefix
    wins. In a table of its own, which a VPN's rules put before the main one, a wider route still wins.
    """
    return overlap(
        network, (route for route in routes if not route.is_main or route.network.prefixlen >= network.prefixlen)
    )


def choose_network(routes: Sequence[Route]) -> tuple[OverlayNetwork, Route | None]:
    """Return a network for a new mesh, and the route for whose sake it is not the usual one.

    One that overlaps nothing of this machine, else one that does not clash, else the usual one.
    """
    usual = overlap(IPv4Network(DEFAULT_NETWORK), routes)
    for conflicts in (overlap, clash):
        for text in _ALTERNATIVES:
            if conflicts(IPv4Network(text), routes) is None:
                return OverlayNetwork.parse(text), usual if text != DEFAULT_NETWORK else None
    return OverlayNetwork.parse(DEFAULT_NETWORK), None


def require_no_clash(network: OverlayNetwork, routes: Sequence[Route], *, new_mesh: bool = True) -> None:
    """Raise MeshrayError ``network_overlap`` if a route of this machine conflicts with the overlay."""
    found = clash(network.cidr, routes)
    if found is None:
        return
    free = next((text for text in _ALTERNATIVES if overlap(IPv4Network(text), routes) is None), "CIDR")
    raise MeshrayError(
        "network_overlap",
        f"the overlay {network} overlaps a route of this machine: {found}",
        hint=f"meshray init --network {free}"
        if new_mesh
        else f"on the head, create the mesh again with another network: meshray init --network {free}; or change the "
        f"addresses of {found.interface or 'that network'} on this machine",
    )


def routes() -> list[Route]:
    """Return every IPv4 route of this network namespace, in every routing table (VPN programs have their own)."""
    with open_iproute() as netlink:
        names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in netlink.get_links()}
        found = []
        for message in netlink.get_routes(family=socket.AF_INET):
            if message["type"] == _UNICAST and message["table"] != _LOCAL_TABLE:
                destination = message.get_attr("RTA_DST") or "0.0.0.0"  # noqa: S104 - the default route
                found.append(
                    Route(
                        IPv4Network(f"{destination}/{message['dst_len']}"),
                        names.get(message.get_attr("RTA_OIF"), ""),
                        message["table"] == _MAIN_TABLE,
                    )
                )
    return found


def pod_addresses(environ: Mapping[str, str] = os.environ) -> dict[IPv4Address, str]:
    """Return the addresses of this pod and its cluster, with their purpose; nothing outside of a pod.

    The network plugin may give a pod a single address and no route to its network.
    """
    if not pod.in_pod(environ):
        return {}
    with open_iproute() as netlink:
        found = {
            IPv4Address(message.get_attr("IFA_ADDRESS")): f"this pod ({message.get_attr('IFA_LABEL')})"
            for message in netlink.get_addr(family=socket.AF_INET)
            if message.get_attr("IFA_ADDRESS") and message.get_attr("IFA_LABEL") not in (INTERFACE, "lo")
        }
    return {**pod.cluster_addresses(environ), **found}


def routes_here(environ: Mapping[str, str] = os.environ) -> list[Route]:
    """Return `routes`, and in a pod each address on which it depends as a separate route."""
    addresses = pod_addresses(environ)
    return [*routes(), *(Route(IPv4Network(address), purpose) for address, purpose in addresses.items())]


def check_network_and_port(network: OverlayNetwork, port: int) -> None:
    """Check that the network and the port are free on this machine. Raises MeshrayError."""
    require_no_clash(network, routes_here())
    require_free(port)


def check_wireguard(environ: Mapping[str, str]) -> str:
    """Return ``kernel WireGuard`` or the engine's name. Raises MeshrayError if neither is available."""
    from meshray.wireguard.engines import find_engine
    from meshray.wireguard.open import KERNEL, check_available

    return "kernel WireGuard" if check_available(environ) == KERNEL else find_engine(environ).name
