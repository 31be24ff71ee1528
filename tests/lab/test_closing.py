"""Ray's ports are closed to all but the overlay: by nftables, by iptables alone, or with a report if neither exists.

        member 10.99.0.2
              │ overlay, meshray0 10.99.0.1
            node ── docker0 172.17.0.1 ── container 172.17.0.2
              │ eth0 192.168.1.1
              └── lan ── outsider 192.168.1.9

A plain veth replaces the WireGuard device, and one program replaces Ray and all other listeners. IPv6 is tested with
link-local addresses. The oracle is packets: a connection's first one to each port, and its answer.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.lab.host import REPOSITORY, Host, HostProcess
from tests.lab.neighbours import DOCKER_HOST, container, link_local
from tests.lab.scan import open_ports
from tests.lab.world import World

OVERLAY = "10.99.0.1"
LAN = "192.168.1.1"
#: Of Ray: one of its fixed ports, a worker's, an actor's own.
RAYS = (6379, 10500, 41234)
#: A user's own web server in Ray's range, and the mesh's port.
OTHERS = (8000, 51888)
PORTS = (*RAYS, *OTHERS)
LISTEN = f"""
import socket
for port in {PORTS}:
    for family, every in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        end = socket.socket(family)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        end.bind((every, port))
        end.listen()
        globals()[f"{{family}}{{port}}"] = end
print("ready", flush=True)
import time; time.sleep(3600)
"""
DRIVER = """
import asyncio, json, sys
from ipaddress import IPv4Network
from meshray.firewall import Closed, Firewall, Opening, guard_state

firewall = Firewall(Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=False))
heard = tuple((family, ((41234, 41234),)) for family in ("ip", "ip6"))
closed = Closed(((6379, 6379), (10002, 19999)), heard)

async def keep():
    firewall.close(closed)
    print("kept", flush=True)
    async for _ in firewall.changes():
        firewall.apply()
        print("looked", flush=True)

if sys.argv[1] == "keep":
    asyncio.run(keep())
elif sys.argv[1] == "close":
    firewall.close(Closed(((8000, 8000),)))  # another program has the port since
    log = firewall.close(closed)
    problems = [problem.text for problem in firewall.problems()]
    again = firewall.apply()
    print(json.dumps([log, problems, again]))
elif sys.argv[1] == "state":
    state = guard_state("meshray0")
    print(json.dumps([state.how, state.why]))
else:
    firewall.remove()
    print(json.dumps([problem.text for problem in firewall.problems()]))
"""
#: A connection from a port that is closed to others, to port 8000 of the named host.
CALL_OUT = """
import socket, sys
end = socket.socket()
end.bind(("0.0.0.0", 15000))
end.settimeout(5)
end.connect((sys.argv[1], 8000))
"""

#: Tries port 6379 repeatedly for this many seconds: prints the number of attempts, and of successful ones.
KNOCK = """
import json, socket, sys, time
until, knocked, entered = time.monotonic() + float(sys.argv[2]), 0, 0
while time.monotonic() < until:
    ends = [socket.socket() for _ in range(20)]
    for end in ends:
        end.setblocking(False)
        end.connect_ex((sys.argv[1], 6379))
    time.sleep(0.02)
    knocked += len(ends)
    for end in ends:
        try:
            end.getpeername()
            entered += 1
        except OSError:
            pass
        end.close()
print(json.dumps([knocked, entered]))
"""


@dataclass
class Lab:
    """The hosts of the picture above."""

    node: Host
    member: Host
    outsider: Host
    container: Host

    def firewall(self, action: str) -> list[object]:
        """Run one action of meshray's firewall on the node."""
        answer = self.node.run([sys.executable, "-c", DRIVER, action], cwd=REPOSITORY).json()
        assert isinstance(answer, list)
        return answer

    def seen_by_outsiders(self) -> list[set[int]]:
        """Return the ports that answer: the container by IPv4 and IPv6, the LAN by both."""
        with ThreadPoolExecutor(2) as pool:
            lan = pool.submit(open_ports, self.outsider, LAN, link_local(self.node, "eth0", "eth0"), ports=PORTS)
            bridge = link_local(self.node, "docker0", "eth0")
            return [*open_ports(self.container, DOCKER_HOST, bridge, ports=PORTS), *lan.result()]

    def rules(self) -> str:
        """Return all rules of the node, of each kind that is in use, without counters and dates."""
        programs = ["nft list ruleset"]
        for version in ("", "6"):
            if "filter" in self.node.run(["cat", f"/proc/net/ip{version}_tables_names"]).stdout:
                programs.append(f"ip{version}tables-legacy-save")
        text = "".join(self.node.shell(f"/root/sbin/{program}").stdout for program in programs)
        return re.sub(r"packets \d+ bytes \d+|\[\d+:\d+\]|^#.*$", "", text, flags=re.MULTILINE)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with World("closing") as world:
        overlay = world.switch("overlay", "10.99.0.0/16")
        lan = world.switch("lan", "192.168.1.0/24")
        node = world.host("node", lan, LAN)
        world.connect(node, overlay, OVERLAY, interface="meshray0")
        # All programs, whatever a test hides from meshray.
        node.shell("cp -a /usr/sbin /root/sbin")
        outsider = world.host("outsider", lan, "192.168.1.9")
        outsider.run(["ip", "route", "add", "10.99.0.0/16", "via", LAN])
        lab = Lab(node, world.host("member", overlay, "10.99.0.2"), outsider, container(world, node))
        listen(node)
        listen(outsider)
        yield lab


def listen(host: Host) -> HostProcess:
    listener = host.popen([sys.executable, "-c", LISTEN])
    host.wait_until(lambda: "ready" in listener.output, 20, "the listener")
    return listener


#: A program that exists, prints its version and fails at everything else, as on a kernel without nf_tables.
BROKEN = """#!/bin/sh
case "$*" in *--version*) exec /root/sbin/{program} "$@";; esac
echo "{program}: cache initialization failed: Invalid argument" >&2
exit 1
"""
#: The programs hidden from meshray, and how a user's reload of the firewall removes all rules.
HOSTS = {
    "nft": ("", "nft flush ruleset"),
    "iptables-nft": ("nft iptables-legacy* ip6tables-legacy*", "nft flush ruleset"),
    "iptables-legacy": (
        "nft iptables iptables-save ip6tables ip6tables-save iptables-nft* ip6tables-nft*",
        "for t in iptables ip6tables; do $t-legacy -F; $t-legacy -X; done",
    ),
}


def hide(node: Host, programs: str) -> None:
    if programs:
        node.shell(f"set -e; cp -a /usr/sbin /run/sbin; cd /run/sbin; rm {programs}; mount --bind /run/sbin /usr/sbin")


@pytest.mark.parametrize("kind", HOSTS)
def test_only_the_overlay_reaches_rays_ports(lab: Lab, kind: str) -> None:
    hidden, reload = HOSTS[kind]
    if kind != "nft":  # What iptables creates on first use remains: chains that are empty and accept.
        lab.node.shell(f"{kind} -L; {kind.replace('ip', 'ip6')} -L")
    hide(lab.node, hidden)
    before = lab.rules()
    assert lab.seen_by_outsiders() == [set(PORTS)] * 4
    assert lab.firewall("state") == ["", "no rule of meshray closes them"]

    log, problems, again = lab.firewall("close")
    assert log
    assert problems == []
    assert not [line for line in str(again).split(",") if "closed" in line or "MESHRAY" in line]
    assert lab.seen_by_outsiders() == [set(OTHERS)] * 4
    # A neighbour that routes to the overlay's address over the LAN reaches nothing there.
    assert open_ports(lab.outsider, OVERLAY, ports=PORTS) == [set()]
    assert open_ports(lab.member, OVERLAY, ports=PORTS) == [set(PORTS)]
    assert open_ports(lab.node, LAN, ports=PORTS) == [set(PORTS)]
    assert not lab.node.run([sys.executable, "-c", CALL_OUT, "192.168.1.9"], check=False).stderr
    assert lab.firewall("state") == [kind.split("-", 1)[0], ""]

    keeper = lab.node.popen([sys.executable, "-c", DRIVER, "keep"], cwd=REPOSITORY)
    lab.node.wait_until(lambda: "kept" in keeper.output, 20, "the first time")
    lab.node.shell(f"PATH=/root/sbin:$PATH; {reload}")
    lab.node.wait_until(lambda: lab.seen_by_outsiders() == [set(OTHERS)] * 4, 40, "the ports being closed again")
    keeper.stop()

    assert lab.firewall("remove") == []
    assert lab.seen_by_outsiders() == [set(PORTS)] * 4
    if kind != "iptables-nft":  # The reload removed its empty chains.
        assert lab.rules() == before
    assert "MESHRAY" not in lab.rules().upper()


def break_nf_tables(node: Host) -> None:
    node.shell("set -e; cp -a /usr/sbin /run/sbin; mount --bind /run/sbin /usr/sbin")
    saves = [f"{name}tables-nft{end}" for name in ("ip", "ip6") for end in ("", "-save", "-restore")]
    plain = [f"{name}tables{end}" for name in ("ip", "ip6") for end in ("", "-save", "-restore")]
    for program in ("nft", *saves, *plain):
        node.shell(
            f"rm /usr/sbin/{program}; cat > /usr/sbin/{program}; chmod 755 /usr/sbin/{program}",
            stdin=BROKEN.format(program=program),
        )


def test_a_kernel_without_nf_tables_is_guarded_by_the_other_iptables(lab: Lab) -> None:
    break_nf_tables(lab.node)
    log, problems, _ = lab.firewall("close")
    assert "iptables-legacy MESHRAY-INPUT: in place" in json.dumps(log)
    assert problems == []
    # The agent's own table has ended with that process: these are the rules of iptables-legacy alone.
    assert lab.seen_by_outsiders() == [set(OTHERS)] * 4
    assert lab.firewall("state") == ["iptables", ""]


def test_no_connection_is_admitted_while_others_change_the_rules(lab: Lab) -> None:
    """Flushed again and again, by a program that goes on changing rules in between."""
    keeper = lab.node.popen([sys.executable, "-c", DRIVER, "keep"], cwd=REPOSITORY)
    lab.node.wait_until(lambda: "looked" in keeper.output, 20, "the first look")
    knocker = lab.outsider.popen([sys.executable, "-c", KNOCK, LAN, "8"])
    storm = lab.node.popen(["sh", "-c", "while :; do nft add table ip storm; nft delete table ip storm; done"])
    for _ in range(10):
        lab.node.shell("nft flush ruleset; sleep 0.4")
    storm.stop()
    knocker.wait(30)
    knocked, entered = json.loads(knocker.output)
    assert knocked > 100
    assert entered == 0
    # Nor does that last: the plain table, which outlives the agent, is restored as well.
    lab.node.wait_until(lambda: "table inet meshray {" in lab.rules(), 10, "the plain table")
    refused = lab.node.shell("nft delete table inet meshray_owned", check=False)
    assert "not permitted" in refused.stderr
    keeper.stop()
    assert "meshray_owned" not in lab.rules()


def test_ports_that_cannot_be_closed_are_reported(lab: Lab) -> None:
    hide(lab.node, "nft *tables*")
    log, problems, _ = lab.firewall("close")
    assert log == []
    assert len(problems) == 1  # type: ignore[arg-type]
    assert "neither nft nor iptables is installed (apt-get install nftables)" in json.dumps(problems)
    assert lab.firewall("state")[0] == ""
    assert "neither nft nor iptables" in str(lab.firewall("state")[1])


def test_ip6tables_alone_is_missing(lab: Lab) -> None:
    hide(lab.node, "nft ip6tables*")
    _, problems, _ = lab.firewall("close")
    assert "every IPv6 network" in json.dumps(problems)
    assert lab.seen_by_outsiders() == [set(OTHERS), set(PORTS)] * 2
    assert "not for IPv6" in str(lab.firewall("state")[1])
