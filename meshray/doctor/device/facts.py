"""What one node finds out about WireGuard and its overlay interface."""

from __future__ import annotations

from dataclasses import dataclass

KERNEL, USERSPACE = "kernel", "userspace"
#: States of the interface.
UP, DOWN, MISSING, SILENT, FOREIGN = "up", "down", "missing", "silent", "foreign"


@dataclass(frozen=True)
class DeviceFacts:
    """What the tunnel needs, and its interface.

    Attributes:
        is_agent: the node's agent looked, not a command of somebody's.
        uid: as whom it looked; -1: not known.
        net_admin: CAP_NET_ADMIN is in effect; None: not known.
        wireguard: ``kernel`` or ``userspace``, empty where neither can be had: then ``wireguard_error`` says why.
        engine: the program that is or would be used in user space; empty where there is none.
        engine_is_stock: it is the distribution's, not ours.
        engine_fix: the command that installs ours; empty where it is installed.
        carrier: that engine is in the node's namespace, from where this program carries its packets out (empty: none
            does); None: it has a socket of the machine's own network.
        tun_error: why /dev/net/tun does not open; empty where it does.
        namespaces_error: what the kernel said when an ordinary user asked for a namespace, with which of them; None:
            not tried.
        interface: of the overlay.
        state: of the interface; empty: not looked at.
        state_detail: what was seen of it.
        addresses: of the interface.
        expected: this node's overlay address; empty: it is none.
    """

    is_agent: bool = False
    uid: int = -1
    net_admin: bool | None = None
    wireguard: str = ""
    wireguard_error: str = ""
    wireguard_fix: str = ""
    engine: str = ""
    engine_is_stock: bool = False
    engine_fix: str = ""
    carrier: str | None = None
    tun_error: str = ""
    namespaces_error: str | None = None
    interface: str = ""
    state: str = ""
    state_detail: str = ""
    addresses: tuple[str, ...] = ()
    expected: str = ""
