"""Read the host's rules, and find the processes that use meshray's ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from meshray.defaults import METRICS_PORT
from meshray.doctor.context import Context
from meshray.doctor.firewall.facts import Drop, FirewallFacts, PortFacts
from meshray.firewall.backends import nft
from meshray.firewall.closing import Closed, Ranges, ranges, without
from meshray.firewall.guard import GuardState, guard_state
from meshray.firewall.inspect import HostRules, Obstacle, read_host_rules
from meshray.firewall.kernel_state import KernelState
from meshray.firewall.opening import Opening
from meshray.firewall.own_rules import own_rules
from meshray.linux import overlay_netns, procfs
from meshray.linux.process import ManagedProcess
from meshray.linux.pyroute2_lazy import open_iproute
from meshray.linux.sockets import LISTEN, holder_of, tcp_sockets

#: The beginning of the sentence that no rule closes them.
_OPEN = "Ray's ports are open"
#: The holder of a socket whose process cannot be found: the kernel, or a process of another namespace.
_UNKNOWN_HOLDER = "a program of another namespace"


def measure(context: Context, read_rules: Callable[[], HostRules] = read_host_rules) -> FirewallFacts:
    """Return the facts of this node; ``read_rules`` reads the host's rules. Blocking."""
    host_rules = read_rules()
    opening = _opening(context)
    uplink = _uplink(context)
    if overlay_netns.entered() is not None:
        guard, guard_error = "a separate network namespace: only the overlay leads in", ""
    else:
        guard, guard_error = _guard(host_rules, opening, with_ray=context.ray_plan is not None) if opening else ("", "")
    return FirewallFacts(
        unknown="; ".join(host_rules.problems),
        is_node=opening is not None,
        udp=_port(context, host_rules, "udp", uplink) if context.is_hub and opening else PortFacts(),
        tcp=_port(context, host_rules, "tcp", uplink) if context.hosts_coordinator else PortFacts(),
        metrics=_metrics(context, host_rules, opening) if opening else PortFacts(),
        overlay_drops=_drops(host_rules.of_overlay(opening, _members(context)))
        if opening and overlay_netns.entered() is None
        else (),
        interface=context.interface,
        forwarding=overlay_netns.run(_forwarding, context.interface) if context.is_hub else "",
        guard=guard,
        guard_error=guard_error,
        ports_open=guard_error.startswith(_OPEN),
        rules_due=context.rules_due,
        may_read=os.geteuid() == 0,
        unguarded=context.unguarded,
    )


def _forwarding(interface: str) -> str:
    """Return the switch in the network namespace of the calling thread."""
    return KernelState(overlay_netns.path("/proc")).forwarding(interface) or ""


def _opening(context: Context) -> Opening | None:
    """Return the traffic to accept; None if there is no interface for it."""
    if context.mesh_map is None:
        return None
    try:
        overlay_netns.run(socket.if_nametoindex, context.interface)
    except OSError:
        return None
    network = context.mesh_map.mesh.network.cidr
    ports = (context.mesh_port, *context.open_ports)
    ray = context.ray_plan.ports if context.ray_plan is not None else context.mesh_map.ports_of()
    return Opening(
        context.interface, network, forwards=context.is_hub, ports=ports, everything=context.open_all, ray=ray
    )


def _members(context: Context) -> Ranges:
    """Return Ray's ports that members must reach, without those of other programs: these are not opened."""
    plan = context.ray_plan
    if plan is None:
        return ()
    ports, head = plan.ports, plan.head
    wanted: list[int | range] = [*ports.open_ports(head=head), *ports.overlay_ports(head=head), ports.workers]
    return without(ranges(wanted), context.foreign_ports)


def _uplink(context: Context) -> str:
    """Return the interface at which others dial this node: the default route's, else one with a published address."""
    me = (
        next((node for node in context.mesh_map.nodes.values() if node.name == context.name), None)
        if (context.mesh_map)
        else None
    )
    published = {endpoint.host for endpoint in me.endpoints} if me else set()
    with open_iproute() as netlink:
        if netlink.get_default_routes(family=socket.AF_INET):
            return ""
        for message in netlink.get_addr(family=socket.AF_INET):
            if message.get_attr("IFA_LOCAL") in published:
                return str(message.get_attr("IFA_LABEL"))
    return ""


def _port(context: Context, host_rules: HostRules, protocol: str, uplink: str) -> PortFacts:
    port = context.mesh_port
    holder = holder_of(port, protocol)
    part = "engine" if protocol == "udp" else "coordinator"
    own = {f"(pid {pid})" for pid in (ManagedProcess(context.home.pid_file(part)).pid, os.getpid())}
    # The kernel's own WireGuard has no process.
    ours = any(holder.endswith(one) for one in own) or (protocol == "udp" and not holder)
    drops = _drops(host_rules.of_port(protocol, port, uplink))
    diverted = tuple(host_rules.diversions_of_port(protocol, port, uplink))
    return PortFacts(needed=True, port=port, holder=holder, ours=ours, drops=drops, diverted=diverted)


def _metrics(context: Context, host_rules: HostRules, opening: Opening) -> PortFacts:
    """Return the facts of the metrics' port; a socket on another address, such as 127.0.0.1, is not in its way."""
    at = {str(context.ip), "0.0.0.0", "::"}  # noqa: S104 - read, not bound
    found = overlay_netns.run(tcp_sockets, LISTEN)
    inodes = {one.inode for one in found if one.port == METRICS_PORT and one.address in at and not one.only_ipv6}
    # This process is the agent. On a node with many processes a look at all of them would take long.
    is_ours = not inodes.isdisjoint(procfs.sockets(os.getpid()))
    return PortFacts(
        needed=True,
        port=METRICS_PORT,
        holder="" if is_ours or not inodes else procfs.holder(inodes) or _UNKNOWN_HOLDER,
        ours=is_ours,
        # The overlay's namespace has no rules of other programs.
        drops=_drops(host_rules.of_overlay_port(opening, METRICS_PORT)) if overlay_netns.entered() is None else (),
    )


def _drops(obstacles: list[Obstacle]) -> tuple[Drop, ...]:
    return tuple(Drop(one.where, one.cause, one.commands) for one in obstacles)


def _guard(host_rules: HostRules, opening: Opening, *, with_ray: bool) -> tuple[str, str]:
    """Return (the program whose rules guard this node, what is missing)."""
    state = guard_state(opening.interface)
    missing = _unguarded_forwarding(host_rules, opening, state)
    if with_ray and state.why:
        missing.append(f"{_OPEN} to every network that this machine is in: {state.why}")
    if missing:
        return "", "; ".join(missing)
    if not with_ray:
        return "forwarding stays inside the overlay; there is no Ray whose ports are to be closed", ""
    return f"Ray's ports are closed to all but the overlay ({state.how})", ""


def _unguarded_forwarding(host_rules: HostRules, opening: Opening, state: GuardState) -> list[str]:
    comments = nft.own_table_comments(host_rules.listing or "")
    if comments is not None:
        wanted = {rule.comment for found in own_rules(opening, Closed()).values() for rule in found}
        return [] if wanted <= set(comments) else [f"the nft table inet {nft.OWN_TABLE} is incomplete"]
    # Where nft cannot create our table, iptables replaces it.
    by_iptables = host_rules.guarded_by_iptables(opening)
    if host_rules.listing is not None and state.how != "iptables" and not by_iptables:
        return [f"the nft table inet {nft.OWN_TABLE} is missing"]
    if opening.forwards and not by_iptables:
        return ["the rules of iptables that keep forwarding inside the overlay are not in place"]
    return []
