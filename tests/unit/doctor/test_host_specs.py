"""The machine's checks: a healthy one fails none; a broken one fails its own, with evidence and a fix."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from meshray.doctor.check_order import HOST, REQUIREMENTS
from meshray.doctor.device import checks as device_checks
from meshray.doctor.device.facts import DeviceFacts
from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, HostFacts, NodeFacts, decode, encode
from meshray.doctor.firewall import checks as firewall_checks
from meshray.doctor.firewall.checks import guard
from meshray.doctor.firewall.facts import Drop, FirewallFacts, PortFacts
from meshray.doctor.machine import checks as machine_checks
from meshray.doctor.machine.facts import Folder, MachineFacts, ProcessLimits, ProxyEnvironment
from meshray.doctor.pod import checks as pod_checks
from meshray.doctor.pod.facts import Clash, PodFacts
from meshray.doctor.report import FAIL, OK, SKIP, WARN
from meshray.doctor.routes import checks as routes_checks
from meshray.doctor.routes.facts import OtherNetwork, RoutingFacts, StolenRoute
from meshray.protocol.doctor import Check

GB = 1024**3
SPECS = (*REQUIREMENTS, *HOST)

DEVICE = DeviceFacts(
    is_agent=True,
    uid=0,
    net_admin=True,
    wireguard="userspace",
    engine="meshray-engine",
    interface="meshray0",
    state="up",
    addresses=("10.99.0.2", "10.99.128.2"),
    expected="10.99.0.2",
)
STATE = Folder("meshray's state", "/var/lib/meshray", total=100 * GB, free=50 * GB, inodes_free=1000, kind="ext4")
RAY_TEMP = replace(STATE, use="Ray's logs", path="/tmp", for_ray=True)
MACHINE = MachineFacts(
    with_ray=True,
    clock_offset_s=0.4,
    rmem_max=212_992,
    wmem_max=212_992,
    conntrack_count=100,
    conntrack_max=1000,
    overlay="10.99.0.0/16",
    hostname="gpu-1",
    hostname_s=0.01,
    shm_total=8 * GB,
    shm_free=8 * GB,
    object_store=2 * GB,
    processes=(ProcessLimits("the agent", 7, 1024, 524_288, 60),),
    folders=(STATE, RAY_TEMP),
    runs_as_root=True,
    installation="/usr/local/lib/meshray/0.1.0-abc",
)
ROUTING = RoutingFacts(
    "10.99.0.0/16",
    "meshray0",
    address="10.99.0.2",
    own_route="own",
    asked=4,
    overlay_rp_filter=2,
    uplinks={"eth0": 2},
    unanswered={},
)
PORT = PortFacts(needed=True, port=51888, holder="wireguard-go (pid 7)", ours=True)
METRICS = PortFacts(needed=True, port=20190, ours=True)
FIREWALL = FirewallFacts(is_node=True, udp=PORT, tcp=PORT, metrics=METRICS, guard="Ray's ports are closed (nft)")
POD = PodFacts(True, "10.99.0.0/16", kube_proxy=True, service_networks=("10.96.0.0/16",), free="10.201.0.0/16")
HEALTHY = HostFacts(DEVICE, MACHINE, ROUTING, FIREWALL, POD)
DROP = Drop(
    "nft inet filter input", "its policy is drop", ("nft insert rule inet filter input udp dport 51888 accept",)
)
STOLEN = StolenRoute("10.99.0.9", "gpu-9", "tun0", network="10.99.0.0/24", table=254)


def report(facts: HostFacts | None) -> dict[str, Check]:
    # Codes of other groups, on which some depend, are not checked here.
    return {check.code: check for check in examine(Facts(nodes={"gpu-1": NodeFacts("gpu-1", facts)}), specs=SPECS)}


def device(**changes: object) -> HostFacts:
    return replace(HEALTHY, device=replace(DEVICE, **changes))  # type: ignore[arg-type]


def machine(**changes: object) -> HostFacts:
    return replace(HEALTHY, machine=replace(MACHINE, **changes))  # type: ignore[arg-type]


def routing(**changes: object) -> HostFacts:
    return replace(HEALTHY, routing=replace(ROUTING, **changes))  # type: ignore[arg-type]


def firewall(**changes: object) -> HostFacts:
    return replace(HEALTHY, firewall=replace(FIREWALL, **changes))  # type: ignore[arg-type]


def pod(**changes: object) -> HostFacts:
    return replace(HEALTHY, pod=replace(POD, **changes))  # type: ignore[arg-type]


def folders(**changes: object) -> HostFacts:
    return machine(folders=(STATE, replace(RAY_TEMP, **changes)))  # type: ignore[arg-type]


def other(owner: str, interface: str, *networks: str) -> tuple[OtherNetwork, ...]:
    return (OtherNetwork(interface, owner, networks),)


def test_a_healthy_node_fails_no_check() -> None:
    found = report(HEALTHY)
    assert {check.status for check in found.values()} <= {OK, SKIP}
    assert [code for code, check in found.items() if check.status == SKIP] == ["user_namespaces"]
    assert all(check.node == "gpu-1" and check.evidence for check in found.values())


def test_the_cost_of_another_engine_is_reported() -> None:
    stock = report(device(engine="wireguard-go", engine_is_stock=True))["wireguard_available"]
    assert (stock.status, "meshray-engine has several times its throughput" in stock.evidence) == (OK, True)
    facts = device(engine="wireguard-go", engine_is_stock=True, engine_fix="make -C /m engine", carrier="pasta")
    inside = report(facts)["wireguard_available"]
    assert (inside.status, "inside pasta. Lost by that: most of the throughput" in inside.evidence) == (WARN, True)
    assert inside.fix == "make -C /m engine"


BROKEN: list[tuple[str, HostFacts, str, str]] = [
    ("pod_network", pod(clashes=(Clash("10.99.4.7", "this pod (eth0)"), Clash("10.99.0.10", "the API server"))),
     "contains 10.99.4.7 of this pod (eth0), 10.99.0.10 of the API server", "init --network 10.201.0.0/16"),
    ("kube_proxy", pod(service_networks=("10.96.0.0/12",), dropped="10.96.0.0/12"),
     "kube-proxy drops packets to 10.96.0.0/12", "init --network 10.201.0.0/16"),
    ("wireguard_available", device(wireguard="", wireguard_error="none here", wireguard_fix="modprobe wireguard"),
     "none here", "modprobe wireguard"),
    ("wireguard_available", device(engine="wireguard-go", engine_is_stock=True, carrier=""),
     "no network outside its namespace", "apt-get install passt"),
    ("tun_device", device(tun_error="is missing"), "/dev/net/tun is missing", "modprobe tun"),
    ("privileges", device(net_admin=False), "no CAP_NET_ADMIN", "--cap-add NET_ADMIN"),
    ("device_up", device(state="missing"), "no interface meshray0", "meshray up"),
    ("device_up", device(state="down"), "is down", "ip link set meshray0 up"),
    ("device_up", device(state="silent", state_detail="nothing within 1.5 s"), "1.5 s", "meshray down"),
    ("device_up", device(state="foreign", state_detail="meshray0 is a dummy"), "a dummy", "ip -details link show"),
    ("device_up", device(addresses=("10.99.128.2",)), "10.99.128.2, not 10.99.0.2", "meshray down"),
    ("install_trusted", machine(weak_part="/home/ann/ray"), "other users can change /home/ann/ray", "meshray up"),
    ("clock", machine(clock_offset_s=3600.0), "3600 s ahead", "set-ntp"),
    ("clock", machine(clock_offset_s=-181.0), "not yet valid", "set-ntp"),
    ("conntrack_room", machine(conntrack_count=950), "950 of 1000", "nf_conntrack_max=4000"),
    ("proxy_variables", machine(proxies=(ProxyEnvironment("Ray", ("https_proxy",), excepted=False, grpc=True),)),
     "Ray: https_proxy", "no_proxy=$no_proxy,10.99.0.0/16"),
    ("hostname_resolves", machine(hostname_error="no answer", hostname_s=2.2), "gpu-1 does not", "/etc/hosts"),
    ("shared_memory", machine(shm_total=64 * 1024**2), "has 64 MB", "--shm-size"),
    ("shared_memory", machine(object_store=9 * GB, object_store_asked=True), "needs 9216 MB", "remount"),
    ("shared_memory", machine(shm_total=None), "no /dev/shm", "mount"),
    ("open_files", machine(processes=(ProcessLimits("Ray", 9, 1024, 1024, 1000),)), "1000 open of 1024", "prlimit"),
    ("disk_space", folders(free=1 * GB), "99% full", "df -h /tmp"),
    ("disk_space", folders(read_only=True), "read-only", "remount,rw"),
    ("disk_space", folders(inodes_free=0), "no inodes", "df -i /tmp"),
    ("disk_space", folders(inodes_free=20), "only 20 inodes", "df -i /tmp"),
    ("disk_space", machine(folders=(replace(STATE, free=1024),)), "1 KB", "df -h /var/lib/meshray"),
    ("overlay_route", routing(stolen=(STOLEN,)), "10.99.0.9 (gpu-9) leaves by tun0",
     "ip -details route show table all 10.99.0.0/24"),
    ("overlay_route", routing(stolen=(replace(STOLEN, table=52, rule="from all lookup 52 priority 9"),)),
     "in table 52, through the rule from all", "ip rule add to 10.99.0.0/16 lookup main"),
    ("overlay_route", routing(stolen=(replace(STOLEN, interface="", refused="blackhole"),)), "is refused (blackhole)",
     "ip -details route show table all 10.99.0.0/24"),
    ("other_vpns", routing(others=other("Docker", "br-1", "10.99.4.0/22")), "10.99.4.0/22 of Docker", "docker network"),
    ("other_vpns", routing(others=other("WireGuard", "wg0", "10.99.0.0/17")), "on wg0", "other addresses"),
    ("overlay_route", routing(own_route="missing"), "10.99.0.0/16 dev meshray0 is missing",
     "ip route replace 10.99.0.0/16 dev meshray0 proto kernel scope link src 10.99.0.2"),
    ("overlay_route", routing(own_route="via 192.0.2.1 dev eth0", contested=("dhcpcd keeps removing it",)),
     "was replaced: 10.99.0.0/16 leads elsewhere (via 192.0.2.1 dev eth0); dhcpcd keeps removing it",
     "leave meshray0 alone, then: ip route replace"),
    ("overlay_route", routing(stolen=(replace(STOLEN, network="10.99.0.9/32", table=255),)), "leaves by tun0",
     "ip address show to 10.99.0.9"),
    ("overlay_route", routing(first_rule=20, stolen=(replace(STOLEN, table=52, rule="from all priority 20"),)),
     "through the rule", "lookup main priority 19"),
    ("other_vpns", routing(overlay="100.70.0.0/16", others=other("Tailscale", "tailscale0")), "Tailscale", "--network"),
    ("rp_filter", routing(uplinks={"eth1": 1}, unanswered={"eth1": "eth0"}), "strict on eth1", "eth1.rp_filter=2"),
    ("udp_port_open", firewall(udp=replace(PORT, drops=(DROP,))), "nft inet filter input: its policy is drop",
     "nft insert rule inet filter input udp dport 51888 accept"),
    ("udp_port_open", firewall(udp=replace(PORT, ours=False, holder="wg (pid 3)")), "wg (pid 3) listens", "end wg"),
    ("tcp_port_open", firewall(tcp=replace(PORT, ours=False, holder="")), "nobody listens", "meshray logs coordinator"),
    ("overlay_admitted", firewall(overlay_drops=(DROP,)), "nft inet filter input", "nft insert rule"),
    ("metrics_port", firewall(metrics=replace(METRICS, drops=(DROP,))), "the overlay, for Prometheus, is dropped",
     "nft insert rule"),
    ("metrics_port", firewall(metrics=replace(METRICS, ours=False, holder="squid (pid 3)")), "squid (pid 3) listens",
     "ss -ltnp 'sport = :20190'; end squid (pid 3)"),
    ("metrics_port", firewall(metrics=replace(METRICS, ours=False)), "nobody listens", "meshray logs agent"),
    ("guard", firewall(guard="", guard_error="the nft table inet meshray is missing"), "missing", "meshray up"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "facts", "evidence", "fix"), BROKEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_broken_part_is_named_with_its_fix(code: str, facts: HostFacts, evidence: str, fix: str) -> None:
    failed = [check for check in report(facts).values() if check.status == FAIL]
    assert [check.code for check in failed] == [code]
    assert evidence in failed[0].evidence
    assert fix in failed[0].fix


@pytest.mark.parametrize(
    ("code", "facts"),
    [
        ("clock", machine(clock_offset_s=2.5)),
        ("conntrack_room", machine(conntrack_count=800)),
        ("socket_buffers", machine(rmem_max=65_536)),
        ("user_namespaces", device(uid=1000, namespaces_error="a user namespace (Operation not permitted)")),
        ("proxy_variables", machine(proxies=(ProxyEnvironment("the agent", ("http_proxy",), excepted=False),))),
        ("hostname_resolves", machine(with_ray=False, hostname_error="no answer", hostname_s=2.2)),
        ("hostname_resolves", machine(hostname_s=1.9)),
        ("shared_memory", machine(object_store=9 * GB)),
        ("open_files", machine(processes=(ProcessLimits("Ray", 9, 1024, 4096, 100),))),
        ("disk_space", folders(kind="nfs4")),
        ("other_vpns", routing(others=other("WireGuard", "wg0", "10.0.0.0/8"))),
        ("other_vpns", routing(others=other("WireGuard", "wg0", "10.99.0.0/16"))),
        ("rp_filter", routing(uplinks={"eth0": 2, "eth1": 1}, unanswered={"eth1": "eth0"})),
    ],
)
def test_minor_findings_are_warnings(code: str, facts: HostFacts) -> None:
    found = {code: check for code, check in report(facts).items() if check.status not in (OK, SKIP)}
    assert {code: check.status for code, check in found.items()} == {code: WARN}
    assert found[code].fix


def test_a_memory_limit_that_is_nearly_used_up_is_a_warning() -> None:
    mb = 1024**2
    near = machine(memory_limit=1000 * mb, memory_used=930 * mb, memory_group="/docker/1f0c")
    found = report(near)["memory_limit"]
    assert found.evidence.startswith("930 of 1000 MB (93%) of the control group /docker/1f0c are used: Ray kills tasks")
    assert (found.status, "docker run --memory" in found.fix) == (WARN, True)
    found = report(machine(memory_limit=1000 * mb, memory_used=500 * mb, memory_group="/docker/1f0c"))["memory_limit"]
    assert (found.status, found.evidence) == (OK, "500 of 1000 MB (50%) of the control group /docker/1f0c")


def test_other_networks_that_are_elsewhere_are_named_only() -> None:
    check = report(routing(others=other("Docker", "docker0", "172.17.0.0/16")))["other_vpns"]
    assert (check.status, check.evidence) == (OK, "Docker (docker0)")


def test_a_stolen_route_explains_the_filter_that_drops() -> None:
    found = report(routing(stolen=(STOLEN,), overlay_rp_filter=1))
    assert (found["overlay_route"].status, found["rp_filter"].status) == (FAIL, SKIP)


def test_a_guard_that_root_cannot_find_is_a_failure() -> None:
    unread = FirewallFacts(is_node=True, unknown="nft: Invalid argument", may_read=True)
    assert guard(unread).status == FAIL
    opened = replace(unread, guard_error="Ray's ports are open", ports_open=True)
    assert guard(opened).status == FAIL
    allowed = guard(replace(opened, unguarded=True))
    assert (allowed.status, "--unguarded" in allowed.evidence) == (WARN, True)
    # That option does not affect what else is missing.
    assert guard(replace(opened, unguarded=True, ports_open=False)).status == FAIL


def test_an_ordinary_user_learns_what_cannot_be_checked() -> None:
    facts = device(is_agent=False, uid=1000, net_admin=False, tun_error="cannot be opened: Permission denied")
    found = report(replace(facts, firewall=FirewallFacts(is_node=True, udp=PORT, unknown="nft: not permitted")))
    assert not [check for check in found.values() if check.status == FAIL]
    assert "user 1000" in found["privileges"].evidence
    for code in ("udp_port_open", "overlay_admitted", "guard"):
        assert (found[code].status, found[code].evidence) == (SKIP, "nft: not permitted")


@pytest.mark.parametrize("facts", [None, HostFacts()], ids=["no group", "no part"])
def test_facts_that_took_too_long_are_skipped(facts: HostFacts | None) -> None:
    assert {check.status for check in report(facts).values()} == {SKIP}


def test_the_facts_travel_as_json() -> None:
    facts = NodeFacts("gpu-1", routing(stolen=(STOLEN,), others=other("Docker", "docker0", "172.17.0.0/16")))
    assert decode(NodeFacts, encode(facts)) == facts


@pytest.mark.parametrize("area", [device_checks, machine_checks, routes_checks, firewall_checks, pod_checks])
def test_a_check_is_registered_where_it_is_written(area: ModuleType) -> None:
    judges = {
        name
        for name, value in vars(area).items()
        if not name.startswith("_") and getattr(value, "__annotations__", {}).get("return") == "Finding"
    }
    assert judges == {spec.code for spec in (*getattr(area, "REQUIREMENTS", ()), *area.SPECS)}


def test_rules_that_the_agent_sets_later_are_not_missing() -> None:
    missing = "the nft table inet meshray is missing"
    found = report(firewall(guard="", guard_error=missing, rules_due=False, overlay_drops=(DROP,)))
    assert {found[code].status for code in ("guard", "overlay_admitted")} == {SKIP}
    assert "first handshake" in found["guard"].evidence
