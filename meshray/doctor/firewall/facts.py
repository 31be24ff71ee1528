"""What one node finds out about the host's firewall and meshray's own rules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drop:
    """A chain that drops something.

    Attributes:
        where: the chain as its tool names it.
        cause: the rule, or the policy.
        commands: what lets it pass.
    """

    where: str = ""
    cause: str = ""
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class PortFacts:
    """A port on which this node must be reached.

    Attributes:
        needed: somebody dials it: a hub's UDP port, the coordinator's TCP port.
        holder: who has it: name and pid; empty: nobody, or the kernel.
        ours: meshray has it.
    """

    needed: bool = False
    port: int = 0
    holder: str = ""
    ours: bool = False
    drops: tuple[Drop, ...] = ()


@dataclass(frozen=True)
class FirewallFacts:
    """The rules of the host.

    Attributes:
        unknown: why the rules cannot be told; empty where they were read.
        is_node: there is an overlay to let in.
        overlay_drops: what holds back the overlay.
        interface: of the overlay.
        forwarding: of a hub: the switch of its overlay interface, "1" or "0"; empty: not known.
        guard: what keeps the overlay from leading elsewhere; empty: nothing does, as ``guard_error`` says.
        may_read: who looked is root, so rules that could not be read are no rules that work.
        ports_open: what is missing closes Ray's ports, and nothing else is.
        unguarded: Ray may run although they are open (``--unguarded``).
    """

    unknown: str = ""
    is_node: bool = False
    udp: PortFacts = PortFacts()
    tcp: PortFacts = PortFacts()
    overlay_drops: tuple[Drop, ...] = ()
    interface: str = ""
    forwarding: str = ""
    guard: str = ""
    guard_error: str = ""
    may_read: bool = False
    ports_open: bool = False
    unguarded: bool = False
