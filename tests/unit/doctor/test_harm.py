"""No fix and no hint harms the machine, whatever routes, rules, firewalls and VPNs the doctor finds there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshray.doctor.check_order import HOST, REQUIREMENTS
from meshray.doctor.device.facts import DOWN, FOREIGN, MISSING, SILENT, UP, DeviceFacts
from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, HostFacts, NodeFacts
from meshray.doctor.firewall.facts import Drop, FirewallFacts, PortFacts
from meshray.doctor.report import FAIL
from meshray.doctor.routes.facts import MISSING as MISSING_ROUTE
from meshray.doctor.routes.facts import OWN, OtherNetwork, RoutingFacts, StolenRoute
from meshray.errors import MeshrayError
from meshray.firewall.backends.base import HostTable
from meshray.firewall.backends.firewalld import Firewalld
from meshray.firewall.backends.iptables import Iptables
from meshray.firewall.backends.nft import Nft
from meshray.firewall.backends.ufw import Ufw
from meshray.firewall.host_programs import run_program
from meshray.firewall.ruleset import Chain, Table
from meshray.model.address import OverlayNetwork
from meshray.protocol.doctor import Check
from meshray.runtime.preflight import Route, require_no_clash
from meshray.wireguard.interface import Interface, foreign_interface
from tests.harm import harms
from tests.printed_texts import PACKAGE, texts_of

OVERLAY = IPv4Network("10.99.0.0/16")
OWN_ADDRESS, PEER = IPv4Address("10.99.0.2"), IPv4Address("10.99.0.1")


# The rule itself.


@pytest.mark.parametrize(
    "text",
    [
        "ip route del 0.0.0.0/0 dev eth0",
        "on gpu-1: ip route del 10.0.0.0/8 dev meshray0",
        "ip -4 route delete default",
        "ip r flush dev meshray0",
        "ip route del blackhole 10.99.3.0/24",
        "ip route replace 10.99.0.0/16 dev eth0",
        "ip route replace default dev meshray0",
        "ip rule del priority 90",
        "ip rule add from all lookup main priority 50",
        "look; ip rule flush",
        "ip link delete wg0",
        "ip link set eth0 down",
        "ip addr flush dev eth0",
        "nft flush ruleset",
        "nft delete table inet filter",
        "iptables -F",
        "iptables-legacy -t raw -D PREROUTING 1",
        "docker network rm bridge0",
        "wg-quick down wg0",
        "systemctl stop systemd-networkd",
        "ufw disable",
        "rm -rf /var/lib/x",
        "remove that route here",
        "kill 77",
    ],
)
def test_harm_is_detected(text: str) -> None:
    assert harms(text, OVERLAY)


@pytest.mark.parametrize(
    "text",
    [
        "ip route get 10.99.0.7; does it have a network at all?",
        "ip -details route show table all 10.99.7.0/24",
        "ip route replace 10.99.0.0/16 dev meshray0 proto kernel scope link src 10.99.0.2",
        "ip rule add to 10.99.0.0/16 lookup main priority 50; see ip rule and ip route get 10.99.0.1",
        "ip link set meshray0 up",
        "nft delete table inet meshray",
        "nft insert rule inet filter input udp dport 51888 accept",
        "iptables -I INPUT -p udp --dport 51888 -j ACCEPT",
        "docker network ls",
        "meshray down; meshray up",
        "kill -CONT 77",
        "sysctl net.ipv4.conf.all.rp_filter=2",
    ],
)
def test_harmless_text_passes(text: str) -> None:
    assert harms(text, OVERLAY) == []


# Machines.


@dataclass(frozen=True)
class Entry:
    """A route of some machine. An empty ``interface`` means a blackhole."""

    network: IPv4Network
    interface: str
    metric: int = 0
    table: int = 254


@dataclass(frozen=True)
class Rule:
    """A rule that sends packets for ``to`` to a table."""

    priority: int
    to: IPv4Network
    table: int


INTERFACES = ["eth0", "wlan0", "tun7", "wg0", "tailscale0", "docker0", "br-0123456789ab", ""]
OWNERS = {"tun7": "a VPN", "wg0": "WireGuard", "tailscale0": "Tailscale", "docker0": "Docker"}
NETWORKS = [
    IPv4Network(text)
    for text in (
        *("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "8.0.0.0/6", "10.0.0.0/8", "10.96.0.0/12", "10.98.0.0/15"),
        *("10.99.0.0/16", "10.99.0.0/17", "10.99.128.0/17", "10.99.0.0/24", "10.99.0.1/32", "10.99.0.1/32"),
        *("192.168.1.0/24", "172.17.0.0/16", "100.64.0.0/10"),
    )
]
ENTRIES = st.builds(
    Entry,
    st.sampled_from(NETWORKS),
    st.sampled_from(INTERFACES),
    st.sampled_from([0, 0, 100, 1024]),
    st.sampled_from([254, 254, 254, 52, 107, 255]),
)
RULES = st.builds(Rule, st.integers(1, 32765), st.sampled_from(NETWORKS), st.sampled_from([52, 107, 254, 0]))
OWN_ENTRY = Entry(OVERLAY, "meshray0")


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[Entry], list[Rule]]:
    entries = draw(st.lists(ENTRIES, max_size=8))
    if draw(st.booleans()):
        # The kernel created it; another one with the same key can only have replaced it.
        entries = [entry for entry in entries if (entry.network, entry.metric, entry.table) != (OVERLAY, 0, 254)]
        entries.append(OWN_ENTRY)
    return entries, draw(st.lists(RULES, max_size=3))


def routing_of(entries: list[Entry], rules: list[Rule]) -> RoutingFacts:
    """Return the probe's facts about such a machine, with a simplified version of the kernel's lookup."""
    stolen = lookup(entries, rules, PEER)
    own = min((entry for entry in entries if (entry.network, entry.table) == (OVERLAY, 254)), key=metric, default=None)
    if own is None or own.metric:
        state = MISSING_ROUTE
    else:
        state = OWN if own.interface == "meshray0" else f"dev {own.interface}" if own.interface else "blackhole"
    others = tuple(
        OtherNetwork(name, owner, tuple(str(entry.network) for entry in entries if entry.interface == name))
        for name, owner in OWNERS.items()
    )
    return RoutingFacts(
        str(OVERLAY),
        "meshray0",
        address=str(OWN_ADDRESS),
        own_route=state,
        first_rule=min((rule.priority for rule in rules), default=0),
        asked=1,
        stolen=(stolen,) if stolen else (),
        others=others,
        overlay_rp_filter=1,
    )


def metric(entry: Entry) -> int:
    return entry.metric


def lookup(entries: list[Entry], rules: list[Rule], target: IPv4Address) -> StolenRoute | None:
    """Return None if the packet leaves by the overlay's interface."""
    own_rules = [Rule(0, NETWORKS[0], 255), Rule(32766, NETWORKS[0], 254)]
    for rule in sorted([*own_rules, *rules], key=lambda rule: rule.priority):
        if target not in rule.to:
            continue
        by = "" if rule in own_rules else f"from all to {rule.to} lookup {rule.table} priority {rule.priority}"
        if not rule.table:
            return StolenRoute(str(target), "head", "", "prohibit")
        found = [entry for entry in entries if entry.table == rule.table and target in entry.network]
        if found:
            best = min(found, key=lambda entry: (-entry.network.prefixlen, entry.metric))
            if best.interface == "meshray0":
                return None
            refused = "" if best.interface else "blackhole"
            return StolenRoute(str(target), "head", best.interface, refused, str(best.network), best.table, by)
    return StolenRoute(str(target), "head", "", "unreachable")


def checks_of(facts: HostFacts) -> tuple[Check, ...]:
    return examine(Facts(nodes={"gpu-1": NodeFacts("gpu-1", facts)}), specs=(*REQUIREMENTS, *HOST))


def assert_harmless(checks: Iterable[Check]) -> None:
    for check in checks:
        assert harms(check.fix, OVERLAY) == [], check


@given(machines())
@example(([Entry(NETWORKS[0], "eth0")], []))
@example(([Entry(NETWORKS[1], "tun7"), Entry(NETWORKS[2], "tun7"), Entry(NETWORKS[0], "eth0")], []))
@example(([Entry(OVERLAY, "eth0")], []))
@example(([OWN_ENTRY, Entry(IPv4Network("10.99.0.1/32"), "wg0")], []))
def test_no_fix_for_a_route_harms(machine: tuple[list[Entry], list[Rule]]) -> None:
    facts = routing_of(*machine)
    checks = {check.code: check for check in checks_of(HostFacts(routing=facts))}
    assert_harmless(checks.values())
    vpns, route = checks["other_vpns"], checks["overlay_route"]
    if vpns.status == FAIL:
        return
    if facts.own_route != OWN:
        # The cause is the overlay's own route, and the command creates it.
        assert route.status == FAIL
        assert "the overlay's own route 10.99.0.0/16 dev meshray0" in route.evidence
        assert f"ip route replace {OVERLAY} dev meshray0 proto kernel scope link src {OWN_ADDRESS}" in route.fix
        assert route.repair == "routes"
    else:
        assert (route.status == FAIL) == bool(facts.stolen)
        assert not route.repair


@given(machines())
def test_the_command_for_a_missing_route_gives_the_overlay_back(machine: tuple[list[Entry], list[Rule]]) -> None:
    """Pasted into the model: the route is there, nothing else changed but what had its place."""
    entries, _ = machine
    facts = routing_of(entries, [])
    check = next(check for check in checks_of(HostFacts(routing=facts)) if check.code == "overlay_route")
    found = re.search(r"ip route replace (\S+) dev (\S+)", check.fix)
    if found is None:
        return
    made = Entry(IPv4Network(found[1]), found[2])
    after = [entry for entry in entries if (entry.network, entry.metric, entry.table) != (OVERLAY, 0, 254)] + [made]
    assert {entry for entry in entries if entry not in after} <= {
        entry for entry in entries if entry.network == OVERLAY
    }
    again = routing_of(after, [])
    assert again.own_route == OWN


def held_tables() -> Iterator[HostTable]:
    """Yield a table of each program that changes it, and of each that manages it."""
    for family, table, chain in (("inet", "filter", "input"), ("netdev", "early", "c")):
        yield HostTable(Table(family, table, (Chain(chain, "input", "drop", ()),)), Nft(run_program))
    for program in ("iptables", "iptables-legacy", "iptables-nft"):
        for table, chain in (("filter", "INPUT"), ("raw", "PREROUTING"), ("mangle", "INPUT")):
            held = Table("iptables", table, (Chain(chain, "input", "drop", ()),))
            yield HostTable(held, Iptables(program, run_program))
    for manager in (Ufw(), Firewalld(run_program)):
        yield HostTable(Table("inet", "filter", (Chain("input", "input", "drop", ()),)), Nft(run_program), manager)


@given(
    st.lists(
        st.builds(
            lambda held, protocol, port: Drop(
                "a chain", "its policy is drop", tuple(held.advise_port(held.table.chains[0], protocol, port))
            ),
            st.sampled_from(list(held_tables())),
            st.sampled_from(["udp", "tcp"]),
            st.integers(1, 65535),
        ),
        max_size=4,
    ),
    st.sampled_from(["", "nginx (pid 7)"]),
    st.booleans(),
)
def test_no_fix_for_a_firewall_harms(drops: list[Drop], holder: str, ours: bool) -> None:
    port = PortFacts(needed=True, port=51888, holder=holder, ours=ours, drops=tuple(drops))
    facts = FirewallFacts(is_node=True, udp=port, tcp=port, overlay_drops=tuple(drops), guard_error="is missing")
    assert_harmless(checks_of(HostFacts(firewall=facts)))


@pytest.mark.parametrize("state", [UP, DOWN, MISSING, SILENT, FOREIGN])
def test_no_fix_for_an_interface_harms(state: str) -> None:
    facts = DeviceFacts(
        is_agent=True,
        net_admin=False,
        wireguard_error="none",
        wireguard_fix="modprobe wireguard",
        tun_error="is missing",
        interface="meshray0",
        state=state,
        state_detail="meshray0 is a dummy interface not created by meshray",
        expected=str(OWN_ADDRESS),
    )
    assert_harmless(checks_of(HostFacts(device=facts)))
    assert_harmless(checks_of(HostFacts(device=replace(facts, net_admin=True, tun_error="", wireguard_error=""))))


@given(st.sampled_from(NETWORKS), st.sampled_from(INTERFACES), st.booleans())
def test_no_refusal_of_an_overlap_suggests_a_deletion(network: IPv4Network, interface: str, new_mesh: bool) -> None:
    try:
        require_no_clash(OverlayNetwork(OVERLAY), [Route(network, interface)], new_mesh=new_mesh)
    except MeshrayError as error:
        assert harms(error.hint, OVERLAY) == []
        assert "meshray init --network" in error.hint


@pytest.mark.parametrize("alias", ["", "meshray /other/state", "somebody's"])
def test_an_interface_of_others_is_not_to_be_deleted(alias: str) -> None:
    assert harms(foreign_interface(Interface("meshray0", 7, "tun", alias, 1420, up=True)).hint, OVERLAY) == []


# All printed commands.

#: Not printed: meshray's own actions, on what it created, or in a container image that it builds.
NOT_FOR_USERS = {
    "firewall/backends/firewalld.py",
    "firewall/backends/nft.py",
    "firewall/firewall.py",
    "firewall/guard.py",
    "firewall/connection_holds.py",
    "runtime/docker/image.py",
    "wireguard/plan.py",
}
#: `docker rm` of a container that meshray created and marked; the forwarding switch of the overlay's own interface.
OURS = {
    "docker ps --all --filter label=io.meshray; docker rm --force its name; meshray leave --yes",
    "mount -o remount,bind,rw /proc/sys && sysctl -w X (in a container: start it again with "
    "--sysctl net.ipv4.ip_forward=1)",
}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(Path(file).relative_to(PACKAGE)))
def test_no_text_of_the_program_suggests_harm(file: Path) -> None:
    if str(file.relative_to(PACKAGE)) in NOT_FOR_USERS:
        return
    for text in texts_of(file, str(OVERLAY)):
        assert text in OURS or harms(text, OVERLAY) == [], file
