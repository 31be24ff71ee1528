"""The real ufw, nftables, both iptables and firewalld accept the overlay and nothing else; a hub forwards only inside.

           a 10.99.0.2      b 10.99.0.3
                 └──── overlay ────┘         every packet between a and b goes through the node
                          │ meshray0 10.99.0.1
                        node
                          │ eth0 192.168.1.1
                          └── lan ── outsider 192.168.1.9

A plain veth replaces the WireGuard device. The oracles are packets, `nft list ruleset`, `iptables-save` and /proc.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.lab.host import REPOSITORY, Host, HostProcess
from tests.lab.world import Switch, World

OVERLAY = "10.99.0.1"
LAN = "192.168.1.1"
DRIVER = """
import asyncio, sys
from ipaddress import IPv4Network
from meshray.firewall import Firewall, Opening, open_port_commands

action, forwards = sys.argv[1], "hub" in sys.argv
firewall = Firewall(Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards))

async def keep():
    print("kept", *firewall.apply(), sep="\\n", flush=True)
    async for _ in firewall.changes():
        print("look", *firewall.apply(), *[problem.text for problem in firewall.problems()], sep="\\n", flush=True)

if action == "keep":
    asyncio.run(keep())
elif action == "ports":
    print(*open_port_commands(51888), sep="\\n")
else:
    print(*getattr(firewall, action)(), sep="\\n")
    print(*[problem.text for problem in firewall.problems()], sep="\\n", file=sys.stderr)
"""
#: Listens on TCP and UDP 6379, the port of Ray's GCS, for the whole test.
LISTEN = """
import socket, threading
def answer_udp():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", 6379))
    while True:
        data, sender = udp.recvfrom(100)
        udp.sendto(data, sender)
threading.Thread(target=answer_udp, daemon=True).start()
tcp = socket.create_server(("0.0.0.0", 6379))
print("ready", flush=True)
while True:
    tcp.accept()[0].close()
"""
REACH = """
import socket, sys
socket.create_connection((sys.argv[1], 6379), timeout=0.7).close()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(0.7)
udp.sendto(b"x", (sys.argv[1], 6379))
udp.recv(10)
"""


@dataclass
class Lab:
    """The hosts of the picture above."""

    world: World
    node: Host
    a: Host
    b: Host
    outsider: Host
    processes: list[HostProcess] = field(default_factory=list)

    def start(self, host: Host, *argv: str) -> HostProcess:
        """Start a command that ends with the test at the latest."""
        self.processes.append(host.popen(argv, cwd=REPOSITORY))
        return self.processes[-1]

    def firewall(self, action: str, *words: str, complaint: str = "") -> list[str]:
        """Run one action of meshray's firewall on the node; return its reported changes."""
        done = self.node.run([sys.executable, "-c", DRIVER, action, *words], cwd=REPOSITORY)
        assert complaint in done.stderr
        assert complaint or not done.stderr.strip()
        return done.stdout.split("\n")[:-1] if done.stdout.strip() else []

    def keep(self, *words: str) -> HostProcess:
        """Run the agent's part: apply, and again at every change."""
        keeper = self.start(self.node, sys.executable, "-c", DRIVER, "keep", *words)
        self.node.wait_until(lambda: "kept" in keeper.output, 20, "the first apply")
        return keeper

    def ruleset(self) -> str:
        """Return all rules of the node, without dates, and without counters, which change all the time."""
        text = self.node.run(["nft", "list", "ruleset"]).stdout + self.node.shell("iptables-nft-save").stdout
        if "filter" in self.node.run(["cat", "/proc/net/ip_tables_names"]).stdout:
            text += self.node.run(["iptables-legacy-save"]).stdout
        return re.sub(r"packets \d+ bytes \d+|\[\d+:\d+\]|^#.*$", "", text, flags=re.MULTILINE)


def reaches(host: Host, address: str) -> bool:
    """Return whether TCP and UDP port 6379 of this address answer the host."""
    return host.run([sys.executable, "-c", REACH, address], check=False).returncode == 0


@dataclass
class Around:
    """The networks and hosts that all tests share, without the node."""

    world: World
    overlay: Switch
    lan: Switch
    a: Host
    b: Host
    outsider: Host


@pytest.fixture(scope="module")
def around() -> Iterator[Around]:
    with World("firewall") as world:
        overlay = world.switch("overlay", "10.99.0.0/16")
        lan = world.switch("lan", "192.168.1.0/24")
        a = world.host("a", overlay, "10.99.0.2")
        b = world.host("b", overlay, "10.99.0.3")
        outsider = world.host("outsider", lan, "192.168.1.9")
        # Routes through the node: as with WireGuard, no member sees another's link.
        for member, other in ((a, "10.99.0.3"), (b, "10.99.0.2")):
            member.run(["ip", "route", "add", other, "via", OVERLAY])
            member.run(["ip", "route", "add", "192.168.1.0/24", "via", OVERLAY])
        outsider.run(["ip", "route", "add", "10.99.0.0/16", "via", LAN])
        listeners = [listen(host) for host in (b, outsider)]
        try:
            yield Around(world, overlay, lan, a, b, outsider)
        finally:
            for listener in listeners:
                listener.stop()


@pytest.fixture
def lab(around: Around, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return a node that is still unchanged."""
    world = around.world
    name = f"node{request.session.items.index(request.node)}"
    node = world.host(name, around.lan, LAN)
    lab = Lab(world, node, around.a, around.b, around.outsider)
    try:
        world.connect(node, around.overlay, OVERLAY, interface="meshray0")
        for neighbour in (around.a, around.b, around.outsider):
            neighbour.run(["ip", "neigh", "flush", "all"])
        lab.processes.append(listen(node))
        yield lab
    finally:
        for process in lab.processes:
            process.stop()
        world.hosts.pop(name).end()


def listen(host: Host) -> HostProcess:
    listener = host.popen([sys.executable, "-c", LISTEN])
    host.wait_until(partial(is_ready, listener), 20, "the listener")
    return listener


def is_ready(process: HostProcess) -> bool:
    return "ready" in process.output


def need(program: str) -> None:
    if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        pytest.skip(f"missing: {program}")


NFT = """nft -f - <<'RULES'
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state vmap { invalid : drop, established : accept, related : accept }
        iifname vmap { "lo" : accept, "eth1" : jump world }
        tcp dport { 22, 80-90 } accept comment "drop { nothing }"
    }
    chain world {
        accept
    }
    chain forward { type filter hook forward priority filter; policy drop; }
}
table ip closed {
    set bad { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1 } }
    chain late {
        type filter hook input priority 20; policy accept;
        ct state established,related accept
        iifname "lo" accept
        counter log prefix "accept me: " reject with icmp type admin-prohibited
    }
}
RULES"""
IPTABLES = """
IPT -A INPUT -i lo -j ACCEPT
IPT -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
IPT -A INPUT -p tcp -m multiport --dports 22,80:90 -m comment --comment "a user's" -j ACCEPT
IPT -P INPUT DROP
IPT -P FORWARD DROP
"""
UFW = "ufw --force reset >/dev/null; ufw default deny incoming; ufw allow 22/tcp; ufw --force enable"
FLUSH_NFT = "nft flush ruleset\n" + NFT
FLUSH_IPTABLES = "IPT -F; IPT -X\n" + IPTABLES
#: (how the host's firewall is created, how a user reloads it)
HOSTS = {
    "nft": (NFT, FLUSH_NFT),
    "iptables-nft": (IPTABLES.replace("IPT", "iptables-nft"), FLUSH_IPTABLES.replace("IPT", "iptables-nft")),
    "iptables-legacy": (IPTABLES.replace("IPT", "iptables-legacy"), FLUSH_IPTABLES.replace("IPT", "iptables-legacy")),
    "ufw": (UFW, "ufw reload; ufw disable; ufw --force enable"),
    "ufw-legacy": (f"{{ {UFW}; }}", "ufw reload; ufw disable; ufw --force enable"),
    "nft-and-legacy": (
        NFT + "\n" + IPTABLES.replace("IPT", "iptables-legacy"),
        FLUSH_NFT + "\n" + FLUSH_IPTABLES.replace("IPT", "iptables-legacy"),
    ),
}


def use_legacy(host: Host) -> None:
    """Make iptables-legacy the host's iptables by Debian's alternatives (/etc is the host's own)."""
    for program in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            host.shell(f"ln -sf /usr/sbin/{program}-legacy{suffix} /etc/alternatives/{program}{suffix}")


@pytest.mark.parametrize("kind", HOSTS)
def test_only_the_overlay_is_admitted(lab: Lab, kind: str) -> None:
    if kind.startswith("ufw"):
        need("ufw")
    if kind == "ufw-legacy":
        use_legacy(lab.node)
    make, reload = HOSTS[kind]
    lab.node.shell(f"set -e\n{make}")
    before = lab.ruleset()
    assert not reaches(lab.a, OVERLAY)

    assert lab.firewall("apply")
    assert reaches(lab.a, OVERLAY)
    assert not reaches(lab.outsider, LAN)
    assert not reaches(lab.outsider, OVERLAY)
    assert lab.firewall("apply") == []

    keeper = lab.keep()
    lab.node.shell(reload)
    lab.node.wait_until(lambda: reaches(lab.a, OVERLAY), 20, "the overlay being let in again")
    assert not reaches(lab.outsider, LAN)
    # Its own change is a change too, but does not keep it busy.
    assert 1 <= keeper.output.count("look") < 20
    assert keeper.returncode is None
    keeper.stop()

    assert lab.firewall("remove")
    assert lab.ruleset() == before
    assert not reaches(lab.a, OVERLAY)
    assert lab.firewall("remove") == []


def test_ufw_was_used_through_legacy(lab: Lab) -> None:
    """The case ufw-legacy above is what it says."""
    need("ufw")
    use_legacy(lab.node)
    lab.node.shell(UFW)
    assert "ufw-user-input" in lab.node.run(["iptables-legacy-save"]).stdout
    assert "ufw-user-input" not in lab.node.run(["nft", "list", "ruleset"]).stdout


def start_firewalld(lab: Lab, backend: str) -> None:
    node = lab.node
    node.shell(
        "rm -rf /etc/firewalld/zones /etc/firewalld/policies; mkdir -p /run/dbus /etc/firewalld/zones\n"
        f"sed -i 's/^FirewallBackend=.*/FirewallBackend={backend}/' /etc/firewalld/firewalld.conf\n"
        "dbus-daemon --system --fork --nopidfile >/dev/null 2>&1"
    )
    lab.start(node, "firewalld", "--nofork", "--nopid")
    node.wait_until(
        lambda: node.run(["firewall-cmd", "--state"], check=False).returncode == 0, 30, "firewalld being ready"
    )


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_firewalld(lab: Lab, backend: str) -> None:
    need("firewalld")
    need("dbus-daemon")
    start_firewalld(lab, backend)
    assert not reaches(lab.a, OVERLAY)

    assert "firewalld: meshray0 is in the trusted zone" in lab.firewall("apply", "hub")
    assert reaches(lab.a, OVERLAY)
    assert reaches(lab.a, "10.99.0.3")
    assert not reaches(lab.a, "192.168.1.9")
    assert not reaches(lab.outsider, LAN)
    assert lab.firewall("apply", "hub") == []

    keeper = lab.keep("hub")
    for reload in ("--reload", "--complete-reload"):
        lab.node.run(["firewall-cmd", reload])
        lab.node.wait_until(lambda: reaches(lab.a, OVERLAY), 20, f"the overlay being let in after {reload}")
        assert not reaches(lab.outsider, LAN)
    keeper.stop()

    assert lab.firewall("remove", "hub")
    assert not reaches(lab.a, OVERLAY)
    assert "meshray" not in lab.ruleset()
    # firewalld keeps the chains of a used zone until it reloads.
    lab.node.run(["firewall-cmd", "--reload"])
    after = lab.ruleset()
    lab.node.run(["firewall-cmd", "--reload"])
    assert lab.ruleset() == after
    assert lab.firewall("remove", "hub") == []


def test_firewalld_zone_of_a_user_stays(lab: Lab) -> None:
    need("firewalld")
    need("dbus-daemon")
    start_firewalld(lab, "nftables")
    lab.node.run(["firewall-cmd", "--permanent", "--zone=trusted", "--add-interface=meshray0"])
    lab.node.run(["firewall-cmd", "--reload"])
    assert reaches(lab.a, OVERLAY)
    lab.firewall("apply")
    lab.firewall("remove")
    assert reaches(lab.a, OVERLAY)


def test_rules_that_firewalld_left_behind_are_opened_too(lab: Lab) -> None:
    """firewalld was killed: its rules remain, and it does not answer."""
    need("firewalld")
    need("dbus-daemon")
    start_firewalld(lab, "nftables")
    before = lab.ruleset()
    lab.node.shell("for d in /proc/[0-9]*; do grep -qs -e --nop[i]d $d/cmdline && kill -9 ${d#/proc/}; done; true")
    lab.firewall("apply")
    assert reaches(lab.a, OVERLAY)
    assert not reaches(lab.outsider, LAN)
    lab.firewall("remove")
    assert lab.ruleset() == before


DOCKER = """
IPT -N DOCKER-USER
IPT -N DOCKER
IPT -A DOCKER-USER -j RETURN
IPT -A FORWARD -j DOCKER-USER
IPT -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
IPT -A FORWARD -o docker0 -j DOCKER
IPT -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
IPT -P FORWARD DROP
"""


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_hub_beside_docker_forwards_inside_the_overlay_only(lab: Lab, program: str) -> None:
    lab.node.shell("set -e" + DOCKER.replace("IPT", program))
    # Docker enables forwarding for all interfaces: only rules separate the networks.
    lab.node.shell("echo 1 > /proc/sys/net/ipv4/ip_forward")
    before = lab.ruleset()
    assert not reaches(lab.a, "10.99.0.3")

    lab.firewall("apply", "hub")
    assert reaches(lab.a, "10.99.0.3")
    assert not reaches(lab.a, "192.168.1.9")
    assert not reaches(lab.outsider, "10.99.0.3")
    assert "meshray" in lab.node.run([program, "-S", "DOCKER-USER"]).stdout
    # Docker starts again and puts its chain first again.
    lab.node.shell(f"{program} -D FORWARD -j DOCKER-USER; {program} -I FORWARD -j DOCKER-USER")
    assert lab.firewall("apply", "hub") == []
    assert reaches(lab.a, "10.99.0.3")

    lab.firewall("remove", "hub")
    assert lab.ruleset() == before
    assert not reaches(lab.a, "10.99.0.3")


@pytest.mark.parametrize("global_forwarding", ["0", "1"])
def test_hub_without_any_firewall(lab: Lab, global_forwarding: str) -> None:
    """The input interface's own switch is what counts, so the host's other interfaces are left alone."""
    lab.node.shell(f"echo {global_forwarding} > /proc/sys/net/ipv4/ip_forward")
    before = lab.ruleset(), forwarding(lab.node)

    lab.firewall("apply", "hub")
    assert reaches(lab.a, "10.99.0.3")
    assert not reaches(lab.a, "192.168.1.9")
    assert not reaches(lab.outsider, "10.99.0.3")
    expected = before[1] | {"meshray0": "1"}
    assert forwarding(lab.node) == expected

    lab.firewall("apply")  # The same node, no longer a hub.
    assert not reaches(lab.a, "10.99.0.3")
    lab.firewall("remove")
    assert (lab.ruleset(), forwarding(lab.node)) == before


def test_hub_does_not_forward_ipv6_to_its_lan(lab: Lab) -> None:
    """The overlay has no IPv6; a host that forwards it for others must not begin to for the overlay."""
    ends = (
        (lab.a, "eth0", "fd99::2", "fd01::/64", "fd99::1"),
        (lab.outsider, "eth0", "fd01::9", "fd99::/64", "fd01::1"),
    )
    for interface, address in (("meshray0", "fd99::1"), ("eth0", "fd01::1")):
        lab.node.run(["ip", "address", "add", f"{address}/64", "dev", interface, "nodad"])
    lab.node.shell("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
    for host, interface, address, other, gateway in ends:
        host.run(["ip", "address", "add", f"{address}/64", "dev", interface, "nodad"])
        host.run(["ip", "route", "add", other, "via", gateway])
    try:
        lab.a.wait_until(lambda: lab.a.can_reach("fd01::9"), 20, "the way through a node that is no hub yet")
        lab.firewall("apply", "hub")
        assert not lab.a.can_reach("fd01::9")
        assert not lab.outsider.can_reach("fd99::2")
        assert lab.outsider.can_reach("fd01::1")
    finally:
        for host, interface, address, _, _ in ends:
            host.run(["ip", "address", "delete", f"{address}/64", "dev", interface])


def forwarding(host: Host) -> dict[str, str]:
    text = host.shell("cd /proc/sys/net/ipv4/conf; grep . */forwarding").stdout
    return {line.split("/")[0]: line[-1] for line in text.splitlines()}


def test_hub_sends_no_redirects(lab: Lab) -> None:
    lab.node.shell(
        "echo 1 > /proc/sys/net/ipv4/conf/all/forwarding; echo 1 > /proc/sys/net/ipv4/conf/all/send_redirects"
    )
    count = ["nft", "add table ip count; add chain ip count in { type filter hook input priority 0; }; "]
    lab.a.run([count[0], count[1] + "add rule ip count in icmp type redirect counter"])

    def redirects() -> str:
        lab.a.run(["ping", "-c", "3", "-i", "0.2", "-W", "1", "10.99.0.3"])
        return lab.a.run(["nft", "list", "chain", "ip", "count", "in"]).stdout

    assert "packets 0" not in redirects()
    lab.firewall("apply", "hub")
    lab.a.shell("nft flush table ip count; nft add rule ip count in icmp type redirect counter; ip route flush cache")
    # If they were still sent, they would come again after the kernel's pause for a host that ignores them.
    assert "packets 0" in redirects()
    lab.a.run(["nft", "delete", "table", "ip", "count"])


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_hub_without_nft(lab: Lab, program: str) -> None:
    """A host that has this iptables alone: its rules keep forwarding inside the overlay."""
    lab.node.shell("set -e" + DOCKER.replace("IPT", program))
    lab.node.shell("echo 1 > /proc/sys/net/ipv4/ip_forward")
    save = re.sub(r"\[.*?\]|^#.*$", "", lab.node.run([f"{program}-save"]).stdout, flags=re.MULTILINE)
    other = "legacy" if program == "iptables-nft" else "nft"
    lab.node.shell(
        "set -e; cp -a /usr/sbin /run/sbin; cd /run/sbin\n"
        f"rm nft iptables iptables-save iptables-{other}*; mount --bind /run/sbin /usr/sbin"
    )

    assert lab.firewall("apply", "hub")
    assert reaches(lab.a, "10.99.0.3")
    assert not reaches(lab.a, "192.168.1.9")
    assert not reaches(lab.outsider, "10.99.0.3")
    assert lab.firewall("apply", "hub") == []
    # Docker starts again, and its accepts come first again.
    lab.node.shell(f"{program} -I FORWARD -i eth0 -j ACCEPT")
    assert lab.firewall("apply", "hub")
    assert not reaches(lab.outsider, "10.99.0.3")
    lab.node.shell(f"{program} -D FORWARD -i eth0 -j ACCEPT")

    lab.firewall("remove", "hub")
    # In iptables' own form: iptables-nft creates chains on first use that remain, empty, and that it always shows.
    assert re.sub(r"\[.*?\]|^#.*$", "", lab.node.run([f"{program}-save"]).stdout, flags=re.MULTILINE) == save


def test_node_without_any_program(lab: Lab) -> None:
    """A hub that nothing can guard does not forward, and says why; any other node has nothing to complain of."""
    lab.node.shell("echo 1 > /proc/sys/net/ipv4/ip_forward")
    lab.node.shell("set -e; cp -a /usr/sbin /run/sbin; cd /run/sbin; rm nft *tables*; mount --bind /run/sbin /usr/sbin")
    lab.firewall("apply", "hub", complaint="neither nft nor iptables")
    assert not reaches(lab.a, "10.99.0.3")
    assert not reaches(lab.a, "192.168.1.9")
    lab.firewall("apply")
    assert not reaches(lab.a, "192.168.1.9")


def test_commands_that_open_the_port_do_so(lab: Lab) -> None:
    need("ufw")
    lab.node.shell("ip route add default via 192.168.1.9")
    assert lab.firewall("ports") == []
    lab.node.shell(UFW)
    commands = lab.firewall("ports")
    assert commands == ["ufw allow 51888/udp", "ufw allow 51888/tcp"]
    lab.node.shell("; ".join(commands))
    assert lab.firewall("ports") == []


@pytest.mark.parametrize("kind", ["nft", "iptables-nft", "iptables-legacy"])
def test_commands_for_other_firewalls(lab: Lab, kind: str) -> None:
    lab.node.shell(f"set -e\n{HOSTS[kind][0]}\nip route add default via 192.168.1.9")
    commands = lab.firewall("ports")
    assert commands
    lab.node.shell("set -e; " + "; ".join(commands))
    assert lab.firewall("ports") == []


def test_missing_rights_are_shown(lab: Lab) -> None:
    lab.node.shell(NFT)
    done = lab.node.run([sys.executable, "-c", DRIVER, "apply", "hub"], cwd=REPOSITORY, user="ada")
    assert not done.stdout.strip()
    assert "cannot be read: Operation not permitted" in done.stderr
