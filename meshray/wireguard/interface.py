"""The network interface of both real devices: addresses, routes, MTU, up; through rtnetlink.

    with open_interfaces() as interfaces:
        interface = interfaces.find("meshray0")
        interfaces.add_address(interface, IPv4Interface("10.99.0.7/16"))

An interface that meshray created has a mark in its alias (``ip link show`` prints it), which also identifies its
MESHRAY_HOME. meshray never changes an interface without that mark.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import netlink, rtnetlink
from meshray.wireguard.config import RouteState
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

#: IFF_UP of net/if.h.
_IFF_UP = 1
#: IFALIASZ of linux/if.h is 256 with the terminating zero.
_ALIAS_BYTES = 255


def mark_of(home: Home) -> str:
    """Return the alias of every interface that belongs to this node's state."""
    return os.fsencode(f"meshray {home.state}")[:_ALIAS_BYTES].decode(errors="ignore")


@dataclass(frozen=True)
class Interface:
    """An interface as the kernel shows it. ``kind`` is its type (``wireguard``, ``tun``) and may be empty."""

    name: str
    index: int
    kind: str
    alias: str
    mtu: int
    up: bool


class InterfaceTable:
    """The interfaces of this network namespace. The methods raise OSError if the kernel refuses."""

    def __init__(self, kernel: rtnetlink.RouteSocket) -> None:
        self._kernel = kernel

    def find(self, name: str) -> Interface | None:
        """Return the interface; None if it does not exist."""
        try:
            body = self._kernel.get(
                rtnetlink.RTM_GETLINK,
                _interface_body() + netlink.attribute(rtnetlink.IFLA_IFNAME, _zero_terminated(name)),
            )
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return parse_interface(body)

    def create(self, name: str, kind: str) -> None:
        """Create an interface, down and without addresses."""
        info = netlink.attribute(rtnetlink.IFLA_INFO_KIND, kind.encode())
        self._kernel.change(
            rtnetlink.RTM_NEWLINK,
            _interface_body()
            + netlink.attribute(rtnetlink.IFLA_IFNAME, _zero_terminated(name))
            + netlink.attribute(rtnetlink.IFLA_LINKINFO, info),
            rtnetlink.CREATE | rtnetlink.EXCLUSIVE,
        )

    def delete(self, interface: Interface) -> None:
        """Delete the interface; idempotent."""
        with _ignoring(errno.ENODEV):
            self._kernel.change(rtnetlink.RTM_DELLINK, _interface_body(interface.index))

    def set_alias(self, interface: Interface, alias: str) -> None:
        """Set the interface's alias."""
        self._set(interface, netlink.attribute(rtnetlink.IFLA_IFALIAS, alias.encode()))

    def set_mtu(self, interface: Interface, mtu: int) -> None:
        """Set the MTU, in bytes of an inner packet."""
        self._set(interface, netlink.attribute(rtnetlink.IFLA_MTU, mtu))

    def set_up(self, interface: Interface) -> None:
        """Bring the interface up."""
        self._kernel.change(rtnetlink.RTM_NEWLINK, _interface_body(interface.index, _IFF_UP))

    def addresses(self, interface: Interface) -> tuple[IPv4Interface, ...]:
        """Return the interface's IPv4 addresses, primary ones before their secondaries."""
        bodies = self._kernel.dump(
            rtnetlink.RTM_GETADDR, rtnetlink.ADDRESS.pack(socket.AF_INET, 0, 0, 0, interface.index)
        )
        # An older kernel lists the addresses of all interfaces.
        found = (parse_address(body) for body in bodies)
        return tuple(address for index, address in found if index == interface.index)

    def routes(self, interface: Interface, addresses: Iterable[IPv4Interface]) -> dict[IPv4Network, RouteState]:
        """Return the routes to the networks of these addresses of the interface; see `read_routes`."""
        networks = {address.network for address in addresses if address.network.prefixlen < 32}
        return read_routes(interface.index, networks) if networks else {}

    def apply(self, interface: Interface, step: InterfaceStep) -> None:
        """Apply a step that concerns the interface, not WireGuard."""
        match step:
            case SetMtu(mtu):
                self.set_mtu(interface, mtu)
            case AddAddress(address):
                self.add_address(interface, address)
            case RemoveAddress(address):
                self.remove_address(interface, address)
            case SetUp():
                self.set_up(interface)
            case SetRoute(route):
                set_route(self._kernel, interface.index, route)
            case RemoveRoute(destination):
                remove_route(self._kernel, interface.index, destination)

    def add_address(self, interface: Interface, address: IPv4Interface) -> None:
        """Add the address; idempotent."""
        flags = rtnetlink.CREATE | rtnetlink.EXCLUSIVE
        with _ignoring(errno.EEXIST):
            self._kernel.change(rtnetlink.RTM_NEWADDR, _address_body(interface, address), flags)

    def remove_address(self, interface: Interface, address: IPv4Interface) -> None:
        """Remove the address; idempotent."""
        with _ignoring(errno.EADDRNOTAVAIL):
            self._kernel.change(rtnetlink.RTM_DELADDR, _address_body(interface, address))

    def _set(self, interface: Interface, attributes: bytes) -> None:
        self._kernel.change(rtnetlink.RTM_NEWLINK, _interface_body(interface.index) + attributes)


@contextlib.contextmanager
def open_interfaces() -> Iterator[InterfaceTable]:
    """Open a netlink socket for one read or one series of steps."""
    with rtnetlink.RouteSocket() as kernel:
        yield InterfaceTable(kernel)


@contextlib.contextmanager
def _ignoring(number: int) -> Iterator[None]:
    """Ignore this errno, which means that there was nothing to do."""
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise


def foreign_interface(interface: Interface) -> MeshrayError:
    """Return the error that refuses to change an interface that meshray did not create."""
    what = f"a {interface.kind} interface" if interface.kind else "an interface"
    origin = (
        f"of {interface.alias.removeprefix('meshray ')}"
        if interface.alias.startswith("meshray ")
        else "not created by meshray"
    )
    return MeshrayError(
        "foreign_interface",
        f"{interface.name} is {what} {origin}; meshray does not change it",
        hint=f"ip -details link show {interface.name}; meshray needs this name: rename that interface",
    )


@contextlib.contextmanager
def device_errors(name: str, step: object) -> Iterator[None]:
    """Turn any failure of the step on this interface into a MeshrayError that names both."""
    try:
        yield
    except MeshrayError:
        raise
    # NetlinkError of pyroute2 (WireGuard in the kernel) is not an OSError, and it raises struct and type errors as
    # well.
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
    """Return whether another socket holds the UDP port of the step ``listen on UDP port N``."""
    port = step.rpartition(" ")[2]
    return MeshrayError(
        "port_in_use", f"UDP port {port} is in use by another program", hint=f"find it with: ss -lunp 'sport = :{port}'"
    )


def parse_interface(body: bytes) -> Interface:
    """Return the interface of a message RTM_NEWLINK (pure)."""
    _, _, index, flags, _ = rtnetlink.LINK.unpack_from(body)
    found = netlink.attributes(body[rtnetlink.LINK.size :])
    info = netlink.attributes(found.get(rtnetlink.IFLA_LINKINFO, b""))
    return Interface(
        name=netlink.text(found, rtnetlink.IFLA_IFNAME),
        index=index,
        kind=netlink.text(info, rtnetlink.IFLA_INFO_KIND),
        alias=netlink.text(found, rtnetlink.IFLA_IFALIAS),
        mtu=netlink.number(found, rtnetlink.IFLA_MTU, 0),
        up=bool(flags & _IFF_UP),
    )


def parse_address(body: bytes) -> tuple[int, IPv4Interface]:
    """Return the index of the interface and the address of a message RTM_NEWADDR of IPv4 (pure)."""
    _, length, _, _, index = rtnetlink.ADDRESS.unpack_from(body)
    found = netlink.attributes(body[rtnetlink.ADDRESS.size :])
    # IFA_LOCAL is the interface's own address; on a point-to-point interface IFA_ADDRESS is the far end's.
    return index, IPv4Interface((found.get(rtnetlink.IFA_LOCAL) or found[rtnetlink.IFA_ADDRESS], length))


def _interface_body(index: int = 0, flags: int = 0) -> bytes:
    """Return the fixed part. ``flags`` are those to set; all others are unchanged."""
    return rtnetlink.LINK.pack(socket.AF_UNSPEC, 0, index, flags, flags)


def _address_body(interface: Interface, address: IPv4Interface) -> bytes:
    return (
        rtnetlink.ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, 0, interface.index)
        + netlink.attribute(rtnetlink.IFA_LOCAL, address.ip.packed)
        + netlink.attribute(rtnetlink.IFA_ADDRESS, address.ip.packed)
    )


def _zero_terminated(name: str) -> bytes:
    return name.encode() + b"\0"
