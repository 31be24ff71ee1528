"""Faults of networks in use.

with silenced(router.host, "192.88.99.31"):
    ...                            # packets from there are dropped, those to there pass
reboot(router, 10)
rebind(router, home, port, "40001")
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.host import Host
from tests.lab.world import Router

#: The effect of `conntrack --flush`, a program that not every machine has.
_FORGET = """
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket
with NFCTSocket() as kernel:
    kernel.flush()
"""


@contextmanager
def silenced(host: Host, source: str = "0.0.0.0/0") -> Iterator[None]:
    """Silently drop all packets from there during the block."""
    rules = f"""
    table ip silence {{
        chain prerouting {{
            type filter hook prerouting priority raw; policy accept;
            iifname != "lo" ip saddr {source} drop
        }}
    }}
    """
    host.run(["nft", "-f", "-"], stdin=rules)
    try:
        yield
    finally:
        host.run(["nft", "delete", "table", "ip", "silence"])


def forget(router: Router) -> None:
    """Make the router forget its connections."""
    router.host.run([sys.executable, "-c", _FORGET])


def rebind(router: Router, host: Host, port: int, outer_port: int) -> None:
    """Make the router map this UDP port of this host to another one than before, for every destination."""
    rule = f"ip saddr {host.address} udp sport {port} snat to {router.host.address}:{outer_port}"
    router.host.run(["nft", "insert", "rule", "ip", "router_nat", "postrouting", "oifname", "wan", *rule.split()])
    forget(router)


def reboot(router: Router, seconds: float) -> None:
    """Take the router away; it has forgotten everything when it comes back."""
    (default,) = router.host.run(["ip", "-json", "route", "show", "default"]).json() or [None]
    router.host.shell("ip link set wan down; ip link set lan down")
    forget(router)
    time.sleep(seconds)
    router.host.shell("ip link set lan up; ip link set wan up")
    if default:
        router.host.run(["ip", "route", "add", "default", "via", default["gateway"]])


def away(router: Router, seconds: float) -> None:
    """Cut off the network behind the router for this long; no interface goes down."""
    with silenced(router.host):
        time.sleep(seconds)


def readdress(host: Host, router: Router, address: str) -> None:
    """Give the host another address in the LAN of this router, like a DHCP server."""
    network = router.lan.network
    lines = [
        "address flush dev eth0 scope global",
        f"address add {address}/{network.prefixlen} dev eth0",
        f"route add default via {router.lan.gateway}",
    ]
    host.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")
