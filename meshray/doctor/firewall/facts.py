"""The facts about one node's host firewall and meshray's own rules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drop:
    """A chain that drops packets.

    Attributes:
        where: the chain, as its tool names it.
        cause: the rule or policy that drops them.
        commands: the commands that let them pass.
    """

    where: str = ""
    cause: str = ""
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class PortFacts:
    """A port on which this node must be reached.

    Attributes:
        needed: other nodes dial it: a hub's UDP port, the coordinator's TCP port, the metrics' port of each node.
        holder: the process that has it, by name and pid; empty: none, or the kernel.
        ours: that process belongs to meshray.
        diverted: the rules that send packets to it elsewhere.
    """

    needed: bool = False
    port: int = 0
    holder: str = ""
    ours: bool = False
    drops: tuple[Drop, ...] = ()
    diverted: tuple[str, ...] = ()


@dataclass(frozen=True)
class FirewallFacts:
    """The rules of the host.

    Attributes:
        unknown: why the rules are unknown; empty if they were read.
        is_node: the machine has an overlay to admit.
        metrics: the agent's port for Prometheus, at the overlay address; ``drops`` are those of the overlay's packets.
        overlay_drops: the chains that drop packets of the overlay.
        interface: the overlay's interface.
        forwarding: on a hub, the switch of its overlay interface, "1" or "0"; empty: not known.
        guard: the program whose rules confine the overlay; empty: none, for the reason ``guard_error``.
        rules_due: the agent has come far enough to set them, which it does after its first handshake.
        may_read: root collected the facts, so rules that could not be read do not work.
        ports_open: only the rules that close Ray's ports are missing.
        unguarded: Ray may run although they are open (``--unguarded``).
    """

    unknown: str = ""
    is_node: bool = False
    udp: PortFacts = PortFacts()
    tcp: PortFacts = PortFacts()
    metrics: PortFacts = PortFacts()
    overlay_drops: tuple[Drop, ...] = ()
    interface: str = ""
    forwarding: str = ""
    guard: str = ""
    guard_error: str = ""
    rules_due: bool = True
    may_read: bool = False
    ports_open: bool = False
    unguarded: bool = False
