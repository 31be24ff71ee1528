"""Reads the host's rules, and who has meshray's ports."""

from __future__ import annotations

import os
import socket

from meshray.doctor.host_firewall import Drop, FirewallFacts, PortFacts
from meshray.doctor.probes.context import Context
from meshray.firewall import nft
from meshray.firewall.closing import Closed
from meshray.firewall.guard import guard_state
from meshray.firewall.inspect import HostView, Obstacle, read_host
from meshray.firewall.opening import Opening
from meshray.runtime import inside
from meshray.runtime.ports import user_of
from meshray.runtime.process import ManagedProcess
from meshray.wireguard.link import links


def look(context: Context) -> FirewallFacts:
    """The facts of this node. Blocking."""
    view = read_host()
    opening = _opening(context)
    uplink = _uplink(context)
    if inside.place() is not None:
        guard, guard_error = "a network namespace of its own: nothing but the overlay leads in", ""
    else:
        guard, guard_error = _guard(view, opening, with_ray=context.ray_plan is not None) if opening else ("", "")
    return FirewallFacts(
        unknown="; ".join(view.problems),
        is_node=opening is not None,
        udp=_port(context, view, "udp", uplink) if context.is_hub and opening else PortFacts(),
        tcp=_port(context, view, "tcp", uplink) if context.hosts_coordinator else PortFacts(),
        overlay_drops=_drops(view.of_overlay(opening)) if opening and inside.place() is None else (),
        guard=guard,
        guard_error=guard_error,
    )


def _opening(context: Context) -> Opening | None:
    """What is to pass; None where there is no interface on which it could."""
    if context.mesh_map is None:
        return None
    try:
        inside.run(socket.if_nametoindex, context.interface)
    except OSError:
        return None
    return Opening(context.interface, context.mesh_map.mesh.network.cidr, forwards=context.is_hub)


def _uplink(context: Context) -> str:
    """The interface at which others dial this node: that of the default route, else one with a published address."""
    me = (
        next((node for node in context.mesh_map.nodes.values() if node.name == context.name), None)
        if (context.mesh_map)
        else None
    )
    published = {endpoint.host for endpoint in me.endpoints} if me else set()
    with links() as table:
        if table.netlink.get_default_routes(family=socket.AF_INET):
            return ""
        for message in table.netlink.get_addr(family=socket.AF_INET):
            if message.get_attr("IFA_LOCAL") in published:
                return str(message.get_attr("IFA_LABEL"))
    return ""


def _port(context: Context, view: HostView, protocol: str, uplink: str) -> PortFacts:
    port = context.mesh_port
    holder = user_of(port, protocol)
    part = "engine" if protocol == "udp" else "coordinator"
    own = {f"(pid {pid})" for pid in (ManagedProcess(context.home.pid_file(part)).pid, os.getpid())}
    # The kernel's own WireGuard shows no process.
    ours = any(holder.endswith(one) for one in own) or (protocol == "udp" and not holder)
    drops = _drops(view.of_port(protocol, port, uplink))
    return PortFacts(needed=True, port=port, holder=holder, ours=ours, drops=drops)


def _drops(obstacles: list[Obstacle]) -> tuple[Drop, ...]:
    return tuple(Drop(one.where, one.cause, one.commands) for one in obstacles)


def _guard(view: HostView, opening: Opening, *, with_ray: bool) -> tuple[str, str]:
    """(what guards this node, what is missing)."""
    if view.listing is not None:
        comments = nft.own_table_comments(view.listing)
        wanted = {comment for rules in nft.own_rules(opening, Closed()).values() for _, comment in rules}
        if comments is None or not wanted <= set(comments):
            return "", f"the nft table inet {nft.OWN_TABLE} is {'missing' if comments is None else 'incomplete'}"
    elif opening.forwards and not view.guarded_by_iptables(opening):
        return "", "the rules of iptables that keep forwarding inside the overlay do not stand"
    if not with_ray:
        return "forwarding stays inside the overlay; there is no Ray whose ports are to be closed", ""
    state = guard_state(opening.interface)
    if state.why:
        return "", f"Ray's ports are open to every network that this machine is in: {state.why}"
    return f"Ray's ports are closed to all but the overlay ({state.how})", ""
