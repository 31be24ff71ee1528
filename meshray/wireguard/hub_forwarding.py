"""Forwarding of a hub without root: between nodes, and nowhere else.

On nodes with root the firewall ensures that. In a separate network namespace two routing rules do: packets that come in
on the overlay's interface may go to the overlay, and nowhere else. They name the interface and apply before it exists.

    overlay_netns.run(forward_within, "meshray0", IPv4Network("10.99.0.0/16"))
"""

from __future__ import annotations

import contextlib
import socket
from ipaddress import IPv4Network

from meshray.linux import netlink, overlay_netns, rtnetlink
from meshray.wireguard.interface import device_errors

#: Above the kernel's own rules for all tables but that of local addresses (32766, 32767).
_PRIORITY = 109
_ANYWHERE = IPv4Network("0.0.0.0/0")


def forward_within(interface: str, network: IPv4Network) -> None:
    """Let interfaces that are created from now on forward, within this network. Idempotent.

    Call it in a thread that is in the overlay's namespace.

    Raises:
        MeshrayError: the kernel refuses.
    """
    with device_errors(interface, "enable forwarding"), rtnetlink.RouteSocket() as kernel:
        for rule in (
            _rule(interface, _PRIORITY, network, rtnetlink.TO_TABLE, rtnetlink.MAIN_TABLE),
            _rule(interface, _PRIORITY + 1, _ANYWHERE, rtnetlink.UNREACHABLE),
        ):
            with contextlib.suppress(FileExistsError):
                kernel.change(rtnetlink.RTM_NEWRULE, rule, rtnetlink.CREATE | rtnetlink.EXCLUSIVE)
        # This comes last, so that nothing is ever forwarded elsewhere.
        overlay_netns.path("/proc/sys/net/ipv4/conf/default/forwarding").write_text("1")


def _rule(interface: str, priority: int, destination: IPv4Network, action: int, table: int = 0) -> bytes:
    body = rtnetlink.RULE.pack(socket.AF_INET, destination.prefixlen, 0, 0, table, action, 0)
    if destination.prefixlen:
        body += netlink.attribute(rtnetlink.FRA_DST, destination.network_address.packed)
    body += netlink.attribute(rtnetlink.FRA_IIFNAME, interface.encode() + b"\0")
    return body + netlink.attribute(rtnetlink.FRA_PRIORITY, priority)
