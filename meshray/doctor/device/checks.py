"""Checks of the requirements of a tunnel, and of the overlay interface (pure)."""

from __future__ import annotations

from functools import partial

from meshray.doctor.device.facts import DOWN, FOREIGN, KERNEL, MISSING, SILENT, UP, DeviceFacts
from meshray.doctor.host_specs import host_spec
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec
from meshray.doctor.verdicts import device_is_faulty
from meshray.wireguard.engines import OWN

_CONTAINER = "in a container: --device /dev/net/tun --cap-add NET_ADMIN"


def wireguard_available(facts: DeviceFacts) -> Finding:
    """Check for the kernel's WireGuard or an engine."""
    if facts.wireguard_error and not facts.is_agent and facts.uid != 0:
        return Finding(SKIP, f"without root it cannot be tried: {facts.wireguard_error}", "sudo meshray doctor")
    if facts.wireguard_error:
        return Finding(FAIL, facts.wireguard_error, facts.wireguard_fix)
    if not facts.wireguard:
        return Finding(SKIP, "it was not tried")
    return Finding(OK, "the kernel has WireGuard") if facts.wireguard == KERNEL else _engine(facts)


def _engine(facts: DeviceFacts) -> Finding:
    """Report the cost of a slower engine, and of one whose packets another program carries."""
    if not facts.engine_is_stock:
        return Finding(OK, f"{facts.engine}, an engine in user space")
    if facts.carrier is None:
        return Finding(OK, f"{facts.engine}, an engine in user space; {OWN} has several times its throughput")
    if not facts.carrier:
        return Finding(
            FAIL,
            f"{facts.engine} has no network outside its namespace: its UDP packets do not reach other machines",
            "apt-get install passt",
        )
    lost = "most of the throughput; direct paths to nodes of this same machine, which go through the hub"
    return Finding(WARN, f"{facts.engine} runs inside {facts.carrier}. Lost by that: {lost}", facts.engine_fix)


def tun_device(facts: DeviceFacts) -> Finding:
    """Check /dev/net/tun, which only an engine in user space needs."""
    if facts.wireguard == KERNEL:
        return Finding(SKIP, "the kernel's WireGuard needs none")
    if not facts.tun_error:
        return Finding(OK, "/dev/net/tun")
    if not facts.is_agent and facts.uid != 0:
        return Finding(SKIP, f"/dev/net/tun {facts.tun_error} for this user", "sudo meshray doctor")
    return Finding(FAIL, f"/dev/net/tun {facts.tun_error}", f"modprobe tun; {_CONTAINER}")


def privileges(facts: DeviceFacts) -> Finding:
    """Check the agent's permissions on the network."""
    if facts.net_admin is None:
        return Finding(SKIP, "the kernel does not report the capabilities of this process")
    if facts.net_admin:
        return Finding(OK, f"user {facts.uid} with CAP_NET_ADMIN")
    if not facts.is_agent and facts.uid != 0:
        return Finding(SKIP, f"this command runs as user {facts.uid}: what the agent may do is not known")
    return Finding(
        FAIL,
        f"user {facts.uid} has no CAP_NET_ADMIN: tunnel, routes and firewall cannot be set",
        "run meshray with sudo; in a container: --cap-add NET_ADMIN",
    )


def user_namespaces(facts: DeviceFacts) -> Finding:
    """Check user namespaces, which replace root where it is missing."""
    if facts.uid == 0:
        return Finding(SKIP, "a node that runs as root needs none")
    if facts.namespaces_error is None:
        return Finding(SKIP, "they were not tried")
    if not facts.namespaces_error:
        return Finding(OK, "unprivileged users can create user and network namespaces")
    return Finding(
        WARN,
        f"unprivileged users cannot create {facts.namespaces_error}",
        "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000; "
        "on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    )


def device_up(facts: DeviceFacts) -> Finding:
    """Check that the interface exists, is ours, answers, and has this node's address."""
    if not facts.expected:
        return Finding(SKIP, "this machine has no overlay address")
    name, again = facts.interface, "meshray down; meshray up"
    wrong = {
        MISSING: (f"there is no interface {name}", "meshray up; meshray logs agent"),
        FOREIGN: (
            facts.state_detail,
            f"ip -details link show {name}; meshray needs this name: rename that interface",
        ),
        SILENT: (f"the engine of {name} does not answer: {facts.state_detail}", again),
        DOWN: (f"{name} is down", f"ip link set {name} up"),
    }
    if device_is_faulty(facts.state):
        return Finding(FAIL, *wrong[facts.state], repair="" if facts.state == FOREIGN else "device")
    if facts.state != UP:
        return Finding(SKIP, facts.state_detail or f"{name} was not examined")
    if facts.expected not in facts.addresses:
        has = ", ".join(facts.addresses) or "no address"
        return Finding(FAIL, f"{name} has {has}, not {facts.expected}", again, repair="device")
    return Finding(OK, f"{name} is up with {facts.expected}")


_spec = partial(host_spec, lambda host: host.device)
#: The requirements of a tunnel: checked first, and without an agent too.
REQUIREMENTS: tuple[Spec, ...] = (
    _spec("privileges", "the right to set up the network", privileges),
    _spec("tun_device", "/dev/net/tun", tun_device),
    _spec("wireguard_available", "WireGuard", wireguard_available, "tun_device"),
    _spec("user_namespaces", "user namespaces", user_namespaces),
)
SPECS: tuple[Spec, ...] = (_spec("device_up", "the overlay interface", device_up, "agent_running"),)
