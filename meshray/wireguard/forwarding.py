"""A hub without root forwards between nodes, and to nobody else.

With root that is the firewall's matter; in a network namespace of its own two routing rules do it: what came in by the
overlay's interface may go to the overlay, and nowhere else. They name the interface and hold before it is there.

    inside.run(forward_within, "meshray0", IPv4Network("10.99.0.0/16"))
"""

from __future__ import annotations

import errno
from ipaddress import IPv4Network

from meshray.runtime import inside
from meshray.runtime.lean import open_iproute
from meshray.wireguard.link import explained

#: Above the kernel's own rules for all other tables than that of local addresses (32766, 32767).
_PRIORITY = 109
_MAIN_TABLE = 254
#: FR_ACT_UNREACHABLE of linux/fib_rules.h.
_UNREACHABLE = 7


def forward_within(interface: str, network: IPv4Network) -> None:
    """Lets an interface that is made from now on forward, within this network. Idempotent, and for the thread that is
    inside.

    Raises:
        MeshrayError: the kernel refuses.
    """
    with explained(interface, "let it forward"), open_iproute() as netlink:
        from pyroute2.netlink.exceptions import NetlinkError

        for rule in (
            {"priority": _PRIORITY, "dst": str(network), "table": _MAIN_TABLE},
            {"priority": _PRIORITY + 1, "action": _UNREACHABLE},
        ):
            try:
                netlink.rule("add", iifname=interface, **rule)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
        # Only then, so that nothing is ever forwarded elsewhere.
        inside.path("/proc/sys/net/ipv4/conf/default/forwarding").write_text("1")
