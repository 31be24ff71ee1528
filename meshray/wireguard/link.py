"""The network interface beneath both real devices: addresses, routes, MTU, up; through rtnetlink (pyroute2).

    with links() as table:
        link = table.find("meshray0")
        table.add_address(link, IPv4Interface("10.99.0.7/16"))

An interface that meshray made carries a mark in its alias (``ip link show`` prints it), which also tells
for which MESHRAY_HOME it was made. Nothing without that mark is ever changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, Any

from meshray.errors import MeshrayError
from meshray.runtime.lean import lean_pyroute2
from meshray.settings import Home
from meshray.wireguard.device import RouteState
from meshray.wireguard.plan import (
    AddAddress,
    InterfaceStep,
    RemoveAddress,
    RemoveRoute,
    SetMtu,
    SetRoute,
    SetUp,
)
from meshray.wireguard.routes import read_routes, remove_route, set_route

if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute

#: IFF_UP of net/if.h.
_IFF_UP = 1
#: IFALIASZ of linux/if.h is 256 with the closing zero.
_ALIAS_BYTES = 255


def mark_of(home: Home) -> str:
    """The alias of every interface that belongs to this node's state."""
    return os.fsencode(f"meshray {home.state}")[:_ALIAS_BYTES].decode(errors="ignore")


@dataclass(frozen=True)
class Link:
    """An interface as the kernel shows it. ``kind`` is its type (``wireguard``, ``tun``), may be empty."""

    name: str
    index: int
    kind: str
    alias: str
    mtu: int
    up: bool


class LinkTable:
    """The interfaces of this network namespace.

    Attributes:
        netlink: the open socket, for what is not about interfaces.
    """

    def __init__(self, netlink: IPRoute) -> None:
        self.netlink = netlink

    def find(self, name: str) -> Link | None:
        """The interface, None where there is none of this name."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            found = list(self.netlink.link("get", ifname=name))
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        return _link(found[0]) if found else None

    def create(self, name: str, kind: str) -> None:
        """Makes an interface, down and without addresses."""
        self.netlink.link("add", ifname=name, kind=kind)

    def delete(self, link: Link) -> None:
        """Removes it; nothing happens where it is gone already."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            self.netlink.link("del", index=link.index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise

    def set_alias(self, link: Link, alias: str) -> None:
        """Marks it."""
        self.netlink.link("set", index=link.index, ifalias=alias)

    def set_mtu(self, link: Link, mtu: int) -> None:
        """Bytes of an inner packet."""
        self.netlink.link("set", index=link.index, mtu=mtu)

    def set_up(self, link: Link) -> None:
        """Brings it up."""
        self.netlink.link("set", index=link.index, state="up")

    def addresses(self, link: Link) -> tuple[IPv4Interface, ...]:
        """Its IPv4 addresses, primary ones before their secondaries."""
        found = self.netlink.get_addr(family=socket.AF_INET, index=link.index)
        # IFA_LOCAL is the own address; IFA_ADDRESS is the far end's where a point-to-point one was set.
        return tuple(
            IPv4Interface((message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"), message["prefixlen"]))
            for message in found
            if message["index"] == link.index
        )

    def routes(self, link: Link, addresses: Iterable[IPv4Interface]) -> dict[IPv4Network, RouteState]:
        """The routes to the networks of these addresses of the interface, see `read_routes`."""
        networks = {address.network for address in addresses if address.network.prefixlen < 32}
        return read_routes(link.index, networks) if networks else {}

    def take(self, link: Link, step: InterfaceStep) -> None:
        """Takes a step that concerns the interface, not WireGuard."""
        match step:
            case SetMtu(mtu):
                self.set_mtu(link, mtu)
            case AddAddress(address):
                self.add_address(link, address)
            case RemoveAddress(address):
                self.remove_address(link, address)
            case SetUp():
                self.set_up(link)
            case SetRoute(route):
                set_route(self.netlink, link.index, route)
            case RemoveRoute(destination):
                remove_route(self.netlink, link.index, destination)

    def add_address(self, link: Link, address: IPv4Interface) -> None:
        """Nothing happens where it has the address."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            self.netlink.addr("add", index=link.index, address=str(address.ip), prefixlen=address.network.prefixlen)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise

    def remove_address(self, link: Link, address: IPv4Interface) -> None:
        """Nothing happens where it does not have the address (any more)."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            self.netlink.addr("del", index=link.index, address=str(address.ip), prefixlen=address.network.prefixlen)
        except NetlinkError as error:
            if error.code != errno.EADDRNOTAVAIL:
                raise


@contextlib.contextmanager
def links() -> Iterator[LinkTable]:
    """Opens the netlink socket for one reading or one series of steps."""
    # Costs time and memory that most commands need not spend, so: here, not above.
    lean_pyroute2()
    from pyroute2.iproute.linux import IPRoute

    with IPRoute() as netlink:
        yield LinkTable(netlink)


def foreign_interface(link: Link) -> MeshrayError:
    """The refusal to touch what meshray did not make."""
    what = f"a {link.kind} interface" if link.kind else "an interface"
    whose = f"of {link.alias.removeprefix('meshray ')}" if link.alias.startswith("meshray ") else "not made by meshray"
    return MeshrayError(
        "foreign_interface",
        f"{link.name} is {what} {whose}, so it is left alone",
        hint=f"ip -details link show {link.name}; meshray needs this name: whoever made it must give it another",
    )


@contextlib.contextmanager
def explained(name: str, step: object) -> Iterator[None]:
    """Turns whatever stops the step on this interface into a MeshrayError that says so."""
    try:
        yield
    except MeshrayError:
        raise
    # pyroute2's NetlinkError is no OSError, and struct and type errors come from it as well.
    except Exception as error:
        raise _failure(name, step, error) from error


def _failure(name: str, step: object, error: Exception) -> MeshrayError:
    number = getattr(error, "code", None) or getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return _port_in_use(str(step))
    if number in (errno.EPERM, errno.EACCES):
        return MeshrayError("not_root", f"{name}: cannot {step}: root is needed", hint="run meshray with sudo")
    cause = os.strerror(number) if isinstance(number, int) else str(error)
    return MeshrayError("device_failed", f"{name}: cannot {step}: {cause}")


def _port_in_use(step: str) -> MeshrayError:
    """Another socket holds the UDP port of the step ``listen on UDP port N``."""
    port = step.rpartition(" ")[2]
    return MeshrayError(
        "port_in_use", f"UDP port {port} is in use by another program", hint=f"who it is: ss -lunp 'sport = :{port}'"
    )


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        index=message["index"],
        kind=(info.get_attr("IFLA_INFO_KIND") if info is not None else None) or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
    )
