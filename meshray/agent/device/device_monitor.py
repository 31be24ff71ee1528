"""Detect changes of the overlay's interface or its routes, so that they are repaired at once.

    async for change in device_changes("meshray0", IPv4Network("10.99.0.0/16")):
        log.info("changed by %s", change.culprit or "another program")

meshray's own changes are detected as well; they cost one look at the device, which finds nothing to do.
`meshray.linux.network_monitor` monitors the network beneath the overlay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from meshray.linux import netlink, overlay_netns, rtnetlink

log = logging.getLogger(__name__)

#: One command changes several things at once: the monitor waits this long for the rest, seconds.
SETTLE_S = 0.05
#: The device is read at most once in this time, seconds; the pause doubles while changes continue.
PAUSE_S, LONGEST_PAUSE_S = 0.3, 4.0
#: Programs that manage interfaces, by /proc/PID/comm, with their usual names. Others are not named: the number that the
#: kernel gives is usually a process id, but not always.
_MANAGERS = {
    "systemd-network": "systemd-networkd",
    "NetworkManager": "NetworkManager",
    "dhcpcd": "dhcpcd",
    "connmand": "ConnMan",
    "wicked": "wicked",
    "ifupdown-ng": "ifupdown",
    "bird": "BIRD",
    "zebra": "FRR",
    "tailscaled": "Tailscale",
    "openvpn": "OpenVPN",
}
_IPV4_BYTES = 4


@dataclass(frozen=True)
class DeviceChange:
    """A change. ``culprit`` is the program that made it; empty: not known."""

    culprit: str = ""


async def device_changes(interface: str, overlay: IPv4Network) -> AsyncIterator[DeviceChange]:
    """Yield a moment after each change. Without netlink (a sandbox may forbid it) it yields nothing.

    Close it (``aclose``) to stop listening.
    """
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    ports: set[int] = set()
    groups = rtnetlink.LINKS | rtnetlink.IPV4_ADDRESSES | rtnetlink.IPV4_ROUTES
    try:
        kernel = await asyncio.to_thread(overlay_netns.run, rtnetlink.listen, groups)
    except OSError as error:
        log.warning("changes of %s cannot be watched: %s", interface, error)
        return

    def read() -> None:
        for port in _ports_of_changes(kernel, interface, overlay):
            ports.add(port)
            changed.set()

    loop.add_reader(kernel, read)
    pause_s = PAUSE_S
    try:
        while True:
            await changed.wait()
            await asyncio.sleep(SETTLE_S)
            changed.clear()
            culprit = next(filter(None, map(_program, sorted(ports))), "")
            ports.clear()
            yield DeviceChange(culprit)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S) if changed.is_set() else PAUSE_S
    finally:
        loop.remove_reader(kernel)
        kernel.close()


def _ports_of_changes(kernel: socket.socket, interface: str, overlay: IPv4Network) -> set[int]:
    """Read all pending messages; return the netlink ports that changed something of the overlay."""
    ports: set[int] = set()
    try:
        while data := kernel.recv(65536):
            ports |= {message.port for message in netlink.messages(data) if concerns(message, interface, overlay)}
    except BlockingIOError:
        pass
    except OSError:  # ENOBUFS: more happened than the socket could hold.
        ports.add(0)
    return ports


def concerns(message: netlink.Message, interface: str, overlay: IPv4Network) -> bool:
    """Return whether a message concerns the overlay's interface, an overlay address, or a route to one (pure)."""
    body = message.body
    if message.kind in (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK) and len(body) >= rtnetlink.LINK.size:
        name = netlink.attributes(body[rtnetlink.LINK.size :]).get(rtnetlink.IFLA_IFNAME, b"")
        return name.rstrip(b"\0") == interface.encode()
    if message.kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR) and len(body) >= rtnetlink.ADDRESS.size:
        found = netlink.attributes(body[rtnetlink.ADDRESS.size :])
        return _is_within(found.get(rtnetlink.IFA_LOCAL) or found.get(rtnetlink.IFA_ADDRESS, b""), overlay)
    if message.kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE) and len(body) >= rtnetlink.ROUTE.size:
        length, table = rtnetlink.ROUTE.unpack_from(body)[1], rtnetlink.ROUTE.unpack_from(body)[4]
        found = netlink.attributes(body[rtnetlink.ROUTE.size :])
        return (
            netlink.number(found, rtnetlink.RTA_TABLE, table) == rtnetlink.MAIN_TABLE
            and length >= overlay.prefixlen
            and _is_within(found.get(rtnetlink.RTA_DST, b""), overlay)
        )
    return False


def _is_within(raw: bytes, overlay: IPv4Network) -> bool:
    if len(raw) != _IPV4_BYTES:
        return False
    return int.from_bytes(raw, "big") & int(overlay.netmask) == int(overlay.network_address)


def _program(port: int) -> str:
    """Return the manager with this netlink port; empty if it is not a known one."""
    if port in (0, os.getpid()):
        return ""
    with contextlib.suppress(OSError):
        return _MANAGERS.get(Path(f"/proc/{port}/comm").read_text().strip(), "")
    return ""
