"""Members reach the ports of a node that the mesh needs or its user opened, and not the whole machine.

        member 10.99.0.2
              │ overlay, meshray0 10.99.0.1
            node ── docker0 172.17.0.1
              │ eth0 192.168.1.1

The node's own firewall drops what was not allowed: a database on 5432, one in the range of ephemeral ports, all of UDP.
A plain veth replaces the WireGuard device. The oracle is packets.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.host import REPOSITORY, Host, HostProcess
from tests.lab.scan import open_ports
from tests.lab.test_firewall import IPTABLES
from tests.lab.world import World

OVERLAY, DOCKER, LAN = "10.99.0.1", "172.17.0.1", "192.168.1.1"
#: Of Ray: a fixed port, a worker's, one that an actor chose, one that the kernel chose.
RAYS = {6379, 10500, 29500, 40000}
#: Of others: ssh (which the node's firewall allows), a database, one on a port that the kernel chose.
SSH, DATABASE, FOREIGN = 22, 5432, 40001
PORTS = (*sorted(RAYS), SSH, DATABASE, FOREIGN)
LISTEN = f"""
import socket, time
ends = [socket.create_server(("0.0.0.0", port)) for port in {PORTS}]
print("ready", flush=True)
time.sleep(3600)
"""
DRIVER = f"""
import sys
from ipaddress import IPv4Network
from meshray.firewall import Firewall, Listening, Opening, decide

network = IPv4Network("10.99.0.0/16")
ports = tuple(int(word) for word in sys.argv[2:] if word.isdecimal())
firewall = Firewall(Opening("meshray0", network, False, ports=(51888, *ports), everything="all" in sys.argv))
listening = [Listening(port, "0.0.0.0", port in {RAYS}) for port in {PORTS}]
if sys.argv[1] == "remove":
    firewall.remove()
else:
    firewall.close(decide([6379, range(10002, 20000)], [], (), network=network, chosen=range(32768, 61000)))
    firewall.apply()
    firewall.close(decide([6379, range(10002, 20000)], listening, (), network=network, chosen=range(32768, 61000)))
    assert firewall.apply() == [], firewall.apply()
print([problem.text for problem in firewall.problems()] or "", end="")
"""
NFT = """nft -f - <<'RULES'
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state vmap { invalid : drop, established : accept, related : accept }
        iifname "lo" accept
        tcp dport 22 accept
    }
}
RULES"""
NO_DEFAULT = IPTABLES.replace("22,80:90", "22")
KINDS = {
    "nft": NFT,
    "iptables-nft": NO_DEFAULT.replace("IPT", "iptables-nft"),
    "iptables-legacy": NO_DEFAULT.replace("IPT", "iptables-legacy"),
}


@dataclass
class Lab:
    """The hosts of the picture above."""

    node: Host
    member: Host

    def reached(self, address: str = OVERLAY) -> set[int]:
        """Return the ports that answer the member."""
        return open_ports(self.member, address, ports=PORTS)[0]

    def firewall(self, *words: str) -> None:
        """Run an action of meshray's firewall; fail if it reports a problem."""
        assert self.node.run([sys.executable, "-c", DRIVER, *words], cwd=REPOSITORY).stdout == ""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with World("members") as world:
        overlay = world.switch("overlay", "10.99.0.0/16")
        node = world.host("node", world.switch("lan", "192.168.1.0/24"), LAN)
        world.connect(node, overlay, OVERLAY, interface="meshray0")
        node.shell(
            f"ip link add docker0 type bridge; ip address add {DOCKER}/16 dev docker0; ip link set docker0 up\n"
            "echo 1 > /proc/sys/net/ipv4/ip_forward"
        )
        member = world.host("member", overlay, "10.99.0.2")
        for elsewhere in ("172.17.0.0/16", "192.168.1.0/24"):
            member.run(["ip", "route", "add", elsewhere, "via", OVERLAY])
        start(node, LISTEN, "ready")
        yield Lab(node, member)


def start(host: Host, code: str, sign: str) -> HostProcess:
    process = host.popen([sys.executable, "-c", code])
    host.wait_until(lambda: sign in process.output, 20, "the listener")
    return process


@pytest.mark.parametrize("kind", KINDS)
def test_members_reach_what_the_mesh_needs(lab: Lab, kind: str) -> None:
    lab.node.shell(f"set -e\n{KINDS[kind]}")
    before = lab.reached()
    assert before == {SSH}
    lab.firewall("apply")
    assert lab.reached() == RAYS | before
    assert lab.member.can_reach(OVERLAY)
    assert lab.reached(DOCKER) == lab.reached(LAN) == set()

    lab.firewall("apply", str(DATABASE))
    assert lab.reached() == RAYS | before | {DATABASE}
    lab.firewall("apply", "all")
    assert lab.reached() == set(PORTS)
    assert lab.reached(DOCKER) == lab.reached(LAN) == set()
    lab.firewall("apply")
    assert lab.reached() == RAYS | before

    lab.firewall("remove")
    assert lab.reached() == before


def test_an_open_host_leads_nowhere_else(lab: Lab) -> None:
    """Without a firewall of its own a node answers members as it answers its LAN, on the overlay's addresses only."""
    lab.firewall("apply")
    assert lab.reached() == set(PORTS)
    assert lab.reached(DOCKER) == lab.reached(LAN) == set()


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_firewalld_opens_no_more(lab: Lab, backend: str) -> None:
    for program in ("firewalld", "dbus-daemon"):
        if shutil.which(program, path="/usr/sbin:/usr/bin") is None:
            pytest.skip(f"missing: {program}")
    lab.node.shell(
        "rm -rf /etc/firewalld/zones /etc/firewalld/policies; mkdir -p /run/dbus /etc/firewalld/zones\n"
        f"sed -i 's/^FirewallBackend=.*/FirewallBackend={backend}/' /etc/firewalld/firewalld.conf\n"
        "dbus-daemon --system --fork --nopidfile >/dev/null 2>&1"
    )
    lab.node.popen(["firewalld", "--nofork", "--nopid"])
    running = ["firewall-cmd", "--state"]
    lab.node.wait_until(lambda: lab.node.run(running, check=False).returncode == 0, 30, "firewalld being ready")
    lab.firewall("apply")
    assert "meshray0" in lab.node.run(["firewall-cmd", "--zone=trusted", "--list-interfaces"]).stdout
    assert lab.reached() == RAYS
    assert lab.member.can_reach(OVERLAY)
    # Answers to the node's own connections over the overlay arrive.
    caller = start(lab.member, LISTEN, "ready")
    assert open_ports(lab.node, "10.99.0.2", ports=[DATABASE]) == [{DATABASE}]
    caller.stop()
    lab.firewall("apply", str(DATABASE))
    assert lab.reached() == RAYS | {DATABASE}
