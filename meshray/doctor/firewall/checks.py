"""Checks of the traffic that this machine's rules accept, and of what they must keep out (pure)."""

from __future__ import annotations

from functools import partial

from meshray.doctor.firewall.facts import Drop, FirewallFacts, PortFacts
from meshray.doctor.host_specs import host_spec
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec

_NOT_YET = "the agent sets its rules after its first handshake, which has not come yet"


def udp_port_open(facts: FirewallFacts) -> Finding:
    """Check the UDP port at which hubs are dialled."""
    return _port(facts, facts.udp, "UDP", "this node is not a hub: it only dials out")


def tcp_port_open(facts: FirewallFacts) -> Finding:
    """Check the TCP port at which the coordinator is dialled."""
    return _port(facts, facts.tcp, "TCP", "the coordinator is elsewhere")


def _port(facts: FirewallFacts, port: PortFacts, protocol: str, not_needed: str) -> Finding:
    if not port.needed:
        return Finding(SKIP, not_needed)
    named = f"{protocol} port {port.port}"
    if not port.ours:
        holder, option = port.holder or "nobody", "u" if protocol == "UDP" else "t"
        part = "engine" if protocol == "UDP" else "coordinator"
        find = f"end {port.holder}, then meshray down; meshray up" if port.holder else f"meshray logs {part}"
        return Finding(
            FAIL, f"{holder} listens on {named} instead of meshray", f"{find}; ss -l{option}np 'sport = :{port.port}'"
        )
    if port.drops:
        return Finding(FAIL, f"{named} is dropped by {_describe(port.drops)}", _commands(port.drops))
    if port.diverted:
        fix = f"nft -a list ruleset shows the rule and the program that made it; it must leave {named} alone"
        return Finding(FAIL, f"{named} is sent elsewhere on this machine, by {'; '.join(port.diverted)}", fix)
    if facts.unknown:
        return Finding(SKIP, facts.unknown)
    return Finding(OK, f"no rule of this machine drops {named}")


def overlay_admitted(facts: FirewallFacts) -> Finding:
    """Check that no other rule drops what meshray opened."""
    if not facts.is_node:
        return Finding(SKIP, "this machine has no overlay interface")
    if not facts.rules_due:
        return Finding(SKIP, _NOT_YET)
    if facts.overlay_drops:
        return Finding(
            FAIL,
            f"the overlay is dropped by {_describe(facts.overlay_drops)}",
            _commands(facts.overlay_drops),
            repair="firewall",
        )
    if facts.unknown:
        return Finding(SKIP, facts.unknown)
    return Finding(OK, "no rule of this machine drops what the overlay carries")


def metrics_port(facts: FirewallFacts) -> Finding:
    """Check the TCP port at which Prometheus, on any node, reads this node's metrics."""
    port = facts.metrics
    if not port.needed:
        return Finding(SKIP, "this node's metrics were not examined")
    named = f"TCP port {port.port} of the overlay"
    if not port.ours and not port.holder:
        return Finding(FAIL, f"nobody listens on {named}: Prometheus gets nothing from this node", "meshray logs agent")
    if not port.ours:
        return Finding(
            FAIL,
            f"{port.holder} listens on {named} instead of meshray: Prometheus gets nothing from this node",
            f"ss -ltnp 'sport = :{port.port}'; end {port.holder}, or move it to another port",
        )
    if port.drops:
        return Finding(FAIL, f"{named}, for Prometheus, is dropped by {_describe(port.drops)}", _commands(port.drops))
    if facts.unknown:
        return Finding(SKIP, facts.unknown)
    return Finding(OK, f"no rule of this machine drops {named}")


def guard(facts: FirewallFacts) -> Finding:
    """Check that meshray's own rules are in place."""
    if not facts.is_node:
        return Finding(SKIP, "this machine has no overlay interface")
    if facts.guard:
        return Finding(OK, facts.guard)
    if not facts.rules_due:
        return Finding(SKIP, _NOT_YET)
    if facts.unknown and not facts.may_read:
        return Finding(SKIP, facts.unknown)
    evidence = facts.guard_error or facts.unknown or "its rules are not in place"
    if facts.unguarded:
        evidence = f"{evidence} (Ray runs nevertheless: --unguarded)"
        if facts.ports_open:
            return Finding(WARN, evidence, "apt-get install nftables")
    return Finding(FAIL, evidence, "meshray down; meshray up", repair="firewall")


def _describe(drops: tuple[Drop, ...]) -> str:
    return "; ".join(f"{drop.where}: {drop.cause}" for drop in drops)


def _commands(drops: tuple[Drop, ...]) -> str:
    return "; ".join(dict.fromkeys(command for drop in drops for command in drop.commands))


_spec = partial(host_spec, lambda host: host.firewall)
SPECS: tuple[Spec, ...] = (
    _spec("udp_port_open", "the hub's UDP port", udp_port_open, "agent_running"),
    _spec("tcp_port_open", "the coordinator's TCP port", tcp_port_open, "agent_running"),
    _spec("overlay_admitted", "the host's firewall, for the overlay", overlay_admitted, "agent_running", "device_up"),
    _spec(
        "metrics_port", "the agent's port for metrics", metrics_port, "agent_running", "device_up", "overlay_admitted"
    ),
    _spec("guard", "firewall for Ray's ports", guard, "agent_running", "device_up"),
)
