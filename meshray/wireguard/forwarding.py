"""A hub without root forwards between nodes, and to nobody else.

With root that is the firewall's matter; in a network namespace of its own two routing rules do it: what came in by the
overlay's interface may go to the overlay, and nowhere else. They name the interface and hold before it is there.

    overlay_netns.run(forward_within, "meshray0", IPv4Network("10.99.0.0/16"))
"""

from __future__ import annotations

import contextlib
import socket
from ipaddress import IPv4Network

from meshray.linux import netlink, overlay_netns, rtnetlink
from meshray.wireguard.link import explained

#: Above the kernel's own rules for all other tables than that of local addresses (32766, 32767).
_PRIORITY = 109
_ANYWHERE = IPv4Network("0.0.0.0/0")


def forward_within(interface: str, network: IPv4Network) -> None:
    """Lets an interface that is made from now on forward, within this network. Idempotent, and for the thread that is
    overlay_netns.

    Raises:
        MeshrayError: the kernel refuses.
    """
    with explained(interface, "let it forward"), rtnetlink.RouteSocket() as kernel:
        for rule in (
            _rule(interface, _PRIORITY, network, rtnetlink.TO_TABLE, rtnetlink.MAIN_TABLE),
            _rule(interface, _PRIORITY + 1, _ANYWHERE, rtnetlink.UNREACHABLE),
        ):
            with contextlib.suppress(FileExistsError):
                kernel.change(rtnetlink.RTM_NEWRULE, rule, rtnetlink.CREATE | rtnetlink.EXCLUSIVE)
        # Only then, so that nothing is ever forwarded elsewhere.
        overlay_netns.path("/proc/sys/net/ipv4/conf/default/forwarding").write_text("1")


def _rule(interface: str, priority: int, destination: IPv4Network, action: int, table: int = 0) -> bytes:
    body = rtnetlink.RULE.pack(socket.AF_INET, destination.prefixlen, 0, 0, table, action, 0)
    if destination.prefixlen:
        body += netlink.attribute(rtnetlink.FRA_DST, destination.network_address.packed)
    body += netlink.attribute(rtnetlink.FRA_IIFNAME, interface.encode() + b"\0")
    return body + netlink.attribute(rtnetlink.FRA_PRIORITY, priority)
