"""The checks of the machine itself, as data: each area's functions, applied to every node (pure).

wireguard_available … user_namespaces   what a tunnel needs, in `device.checks`
disk_space … proxy_variables            the machine beneath, in `machine.checks`
overlay_route, other_vpns, rp_filter    in `routes.checks`
udp_port_open … guard                   in `firewall.checks`

What is wrong here is always a cause, so nothing here hides anything else of the same node, but for the few checks that
look at what the agent made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from meshray.doctor.device import checks as device
from meshray.doctor.device.facts import DeviceFacts
from meshray.doctor.facts import Facts, HostFacts
from meshray.doctor.firewall import checks as firewall
from meshray.doctor.firewall.facts import FirewallFacts
from meshray.doctor.machine import checks as machine
from meshray.doctor.machine.facts import MachineFacts
from meshray.doctor.report import SKIP, Finding, Spec
from meshray.doctor.routes import checks as routes
from meshray.doctor.routes.facts import RoutingFacts

T = TypeVar("T")


def _of_device(judge: Callable[[DeviceFacts], Finding]) -> Callable[[Facts], Iterable[Finding]]:
    return lambda facts: _each(facts, lambda host: host.device, judge)


def _of_machine(judge: Callable[[MachineFacts], Finding]) -> Callable[[Facts], Iterable[Finding]]:
    return lambda facts: _each(facts, lambda host: host.machine, judge)


def _of_routing(judge: Callable[[RoutingFacts], Finding]) -> Callable[[Facts], Iterable[Finding]]:
    return lambda facts: _each(facts, lambda host: host.routing, judge)


def _of_firewall(judge: Callable[[FirewallFacts], Finding]) -> Callable[[Facts], Iterable[Finding]]:
    return lambda facts: _each(facts, lambda host: host.firewall, judge)


def _each(facts: Facts, part: Callable[[HostFacts], T | None], judge: Callable[[T], Finding]) -> Iterable[Finding]:
    """The check at every node that was asked; a fix says where it is to be given."""
    here = facts.status.node if facts.status else ""
    for name, node in facts.nodes.items():
        found = part(node.host) if node.host is not None else None
        finding = Finding(SKIP, "it was not found out in time") if found is None else judge(found)
        if finding.fix and here and name != here:
            finding = replace(finding, fix=f"on {name}: {finding.fix}")
        yield replace(finding, node=name)


#: What must be there before an agent can do anything: looked at first, and without an agent too.
GROUND: tuple[Spec, ...] = (
    Spec("privileges", "the right to set up the network", (), _of_device(device.privileges)),
    Spec("tun_device", "/dev/net/tun", (), _of_device(device.tun_device)),
    Spec("wireguard_available", "WireGuard", ("tun_device",), _of_device(device.wireguard_available)),
    Spec("user_namespaces", "user namespaces", (), _of_device(device.user_namespaces)),
    Spec("disk_space", "room in the folders", (), _of_machine(machine.disk_space)),
    Spec("install_trusted", "meshray's files, which root runs", (), _of_machine(machine.install_trusted)),
    Spec("open_files", "limit of open files", (), _of_machine(machine.open_files)),
)
SPECS: tuple[Spec, ...] = (
    Spec("device_up", "the overlay interface", ("agent_running",), _of_device(device.device_up)),
    Spec("clock", "the clock, against the coordinator's", (), _of_machine(machine.clock)),
    Spec("socket_buffers", "socket buffers", (), _of_machine(machine.socket_buffers)),
    Spec("conntrack_room", "room in the list of connections", (), _of_machine(machine.conntrack_room)),
    Spec("other_vpns", "other VPNs", (), _of_routing(routes.other_vpns)),
    Spec(
        "overlay_route",
        "route to the overlay",
        ("agent_running", "device_up", "other_vpns"),
        _of_routing(routes.overlay_route),
    ),
    Spec("rp_filter", "reverse path filter", ("agent_running", "overlay_route"), _of_routing(routes.rp_filter)),
    Spec("udp_port_open", "the hub's UDP port", ("agent_running",), _of_firewall(firewall.udp_port_open)),
    Spec(
        "tcp_port_open",
        "the coordinator's TCP port",
        ("agent_running",),
        _of_firewall(firewall.tcp_port_open),
    ),
    Spec(
        "overlay_admitted",
        "the host's firewall, for the overlay",
        ("agent_running", "device_up"),
        _of_firewall(firewall.overlay_admitted),
    ),
    Spec("guard", "firewall for Ray's ports", ("agent_running", "device_up"), _of_firewall(firewall.guard)),
    Spec("hostname_resolves", "the machine's own name", (), _of_machine(machine.hostname_resolves)),
    Spec("shared_memory", "shared memory for the object store", (), _of_machine(machine.shared_memory)),
    Spec("proxy_variables", "proxy variables", (), _of_machine(machine.proxy_variables)),
)
