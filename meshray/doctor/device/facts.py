"""The facts about one node's WireGuard and its overlay interface."""

from __future__ import annotations

from dataclasses import dataclass

KERNEL, USERSPACE = "kernel", "userspace"
#: States of the interface.
UP, DOWN, MISSING, SILENT, FOREIGN = "up", "down", "missing", "silent", "foreign"


@dataclass(frozen=True)
class DeviceFacts:
    """The requirements of the tunnel, and its interface.

    Attributes:
        is_agent: the node's agent collected the facts, not a user's command.
        uid: the user who collected them; -1: not known.
        net_admin: CAP_NET_ADMIN is in effect; None: not known.
        wireguard: ``kernel`` or ``userspace``; empty if neither is available, for the reason ``wireguard_error``.
        engine: the program that is or would be used in user space; empty if there is none.
        engine_is_stock: it is the distribution's engine, not meshray's.
        engine_fix: the command that installs meshray's engine; empty if it is installed.
        carrier: the program that carries the packets of an engine in the node's namespace (empty: none does); None: the
            engine has a socket in the machine's own network.
        tun_error: why /dev/net/tun cannot be opened; empty if it can.
        namespaces_error: the kernel's error for an ordinary user's request for a namespace, with the kind of namespace;
            None: not tried.
        interface: the overlay's interface.
        state: the interface's state; empty: not examined.
        state_detail: details of that state.
        addresses: the interface's addresses.
        expected: this node's overlay address; empty: the machine is not a node.
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
