"""Faults of a node's machine, on a head with the coordinator and a worker, without Ray.

    switch wan 203.0.113.0/24
     ┌──────────┴──────────┐
   head                  worker
203.0.113.10          203.0.113.20

  for fault in FAULTS:
      fault.inject(stage)         # now `meshray doctor` on fault.node reports fault.code first
      fault.heal(stage)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshray.wireguard.engines import BUNDLED, STOCK
from tests.lab.cluster import Cluster
from tests.lab.faults import Fault
from tests.lab.host import Host
from tests.lab.world import World


@dataclass(frozen=True)
class HostStage:
    """The mesh on which the machine breaks."""

    cluster: Cluster
    head: Host
    worker: Host

    @classmethod
    def build(cls, world: World) -> HostStage:
        """Create a mesh of two nodes."""
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        worker = world.host("worker", wan, "203.0.113.20")
        return cls(Cluster.without_ray(head, [worker]), head, worker)

    def start_agent(self, env: dict[str, str]) -> None:
        """Kill the worker's agent and start it with additional environment variables."""
        worker = self.worker
        worker.shell(f"kill -KILL {process_id('agent')}")
        worker.popen([sys.executable, "-m", "meshray.agent"], env=env)

        def has_a_path() -> bool:
            # Under another clock than its engine's it may report faults, and it changes its key.
            nodes = worker.run(["meshray", "status", "--json"], check=False).json().get("nodes", [])
            return any(node["name"] == "head" and node["path"]["rtt_ms"] is not None for node in nodes)

        worker.wait_until(has_a_path, 60, "an agent with a path to the head")

    def host(self, name: str) -> Host:
        """Return the host with this name."""
        return {"head": self.head, "worker": self.worker}[name]

    @property
    def head_ip(self) -> str:
        """The head's overlay address."""
        return self.cluster.ip(self.head)


Do = Callable[[HostStage], None]


def _shell(node: str, text: str) -> Do:
    """Return a piece of shell on that host; {head} is the head's overlay address, {worker} the worker's."""

    def do(stage: HostStage) -> None:
        head, worker = stage.head_ip, stage.cluster.ip(stage.worker)
        stage.host(node).shell(text.replace("{head}", head).replace("{worker}", worker))

    return do


def _fault(
    name: str, code: str, node: str, inject: str, heal: str, *, by_hand: str = "", leftover: str = ""
) -> Fault[HostStage]:
    """Return a fault whose printed fix the suite runs, unless there is a reason not to; see `Fault`."""
    return Fault(
        name,
        "host",
        _shell(node, inject),
        _shell(node, heal),
        code,
        node,
        by_hand=by_hand,
        leftover=_shell(node, leftover) if leftover else None,
    )


def _clock(name: str, shift: str) -> Fault[HostStage]:
    """Set the agent's clock alone, and only temporarily, as time.sleep fails under this library."""

    def inject(stage: HostStage) -> None:
        stage.start_agent({"LD_PRELOAD": _faketime(), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"})

        def is_reported() -> bool:
            # At first the change of the key, which this clock causes, may lose all probes.
            checks = stage.worker.run(["meshray", "doctor", "--json"], check=False).json().get("checks", [])
            return next((check["code"] for check in checks if check["status"] == "fail"), "") == "clock"

        stage.worker.wait_until(is_reported, 60, "a doctor that sees the clock first")

    return Fault(
        name, "host", inject, lambda stage: stage.start_agent({}), "clock", "worker", by_hand="the clock is simulated"
    )


def _instead(path: str, text: str) -> tuple[str, str]:
    """Replace the content of a kernel file, for this host alone: (inject, heal)."""
    return f"printf '{text}' > /tmp/instead; mount --bind /tmp/instead {path}", f"umount {path}"


def _table(family: str, name: str, chain: str, rules: str) -> tuple[str, str]:
    """Add another program's table: (inject, heal)."""
    text = f"table {family} {name} {{ chain c {{\ntype filter hook {chain}; policy accept;\n{rules}\n}}; }}"
    return f"nft -f - <<'RULES'\n{text}\nRULES", f"nft delete table {family} {name}"


def process_id(part: str) -> str:
    """Return shell words for the process id of a part of meshray."""
    return f"$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' /run/meshray/{part}.pid)"


def _faketime() -> str:
    """Return the library of the package faketime."""
    return str(next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")))


_OTHER_LAN = "ip link add lan7 type bridge; ip address add 192.168.77.1/24 dev lan7; ip link set lan7 up"
_END_OTHER_LAN = "ip link delete lan7"
_DOCKER = "br-0123456789ab"
_STATE = "/var/lib/meshray"
#: Waits for a port of the mesh to be free and takes it.
_GRAB = """cat > /tmp/grabber.py <<'CODE'
import socket, time
grabber = socket.socket()
grabber.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
while True:
    try:
        grabber.bind(("0.0.0.0", 51888))
        break
    except OSError:
        time.sleep(0.01)
grabber.listen()
time.sleep(3600)
CODE
python3 /tmp/grabber.py > /dev/null 2>&1 &
echo $! > /tmp/grabber.pid
sleep 0.3
{}
for try in $(seq 100); do
    ss -ltnp 'sport = :51888' | grep -q "pid=$(cat /tmp/grabber.pid)," && break
    sleep 0.1
done"""
#: Waits for the agent's port to be free and takes it.
_TAKE_METRICS = """python3 -c '
import socket, time
taker = socket.create_server(("0.0.0.0", 20190))
time.sleep(3600)
' > /dev/null 2>&1 &
echo $! > /tmp/taker.pid
for try in $(seq 50); do
    ss -ltnp "sport = :20190" | grep -q "pid=$(cat /tmp/taker.pid)," && break
    sleep 0.1
done"""
#: Shell words for the program nft.
NFT = "$(readlink -f $(command -v nft))"
#: All programs that could close a port.
FIREWALLS = f"{NFT} $(for name in iptables iptables-legacy; do readlink -f $(command -v $name); done | sort -u)"
#: They only list and change nothing; meanwhile the real nft is /tmp/nft.
_NO_FIREWALL = f"""cat > /tmp/refuses <<'CODE'
#!/bin/sh
case "$0 $*" in *nft*list*) exec /tmp/nft "$@";; *-save*) exit 0;; esac
echo "Operation not permitted (you must be root)" >&2
exit 1
CODE
chmod +x /tmp/refuses
cp {NFT} /tmp/nft
for program in {FIREWALLS}; do mount --bind /tmp/refuses $program; done
/tmp/nft delete table inet meshray"""
#: Answers to the worker leave by a second card on the same network, with the first card's address: the filter of the
#: first one drops the worker's packets.
_SECOND_CARD = r"""ip link add link eth0 name card2 type macvlan mode bridge
echo 1 > /proc/sys/net/ipv4/conf/card2/arp_ignore
ip link set card2 up
ping -nqc1 203.0.113.20 > /dev/null
mac=$(ip neigh show 203.0.113.20 dev eth0 | sed 's/.*lladdr \([^ ]*\).*/\1/')
ip neigh replace 203.0.113.20 lladdr $mac dev card2 nud permanent
ip route add 203.0.113.20/32 dev card2 src 203.0.113.10
ip route flush cache"""
_STRICT = "echo {} > /proc/sys/net/ipv4/conf/eth0/rp_filter"
_ENGINES = f"for file in {BUNDLED} /usr/bin/{STOCK}; do [ ! -e $file ] || {{}} $file; done"

#: Repeats it until `_END_AGAIN`.
_AGAIN = """while :; do {}; sleep 0.02; done > /dev/null 2>&1 &
echo $! > /tmp/again.pid
sleep 1"""
_END_AGAIN = "kill $(cat /tmp/again.pid)"
_OVERLAY = "10.99.0.0/16"

FAULTS: tuple[Fault[HostStage], ...] = (
    _fault(
        "tun-away",
        "tun_device",
        "worker",
        # A device number without a driver; /dev itself is the machine's.
        "rm -f /tmp/tun; mknod /tmp/tun c 10 252; mount --bind /tmp/tun /dev/net/tun",
        "umount /dev/net/tun",
        by_hand="the device is hidden by a mount",
    ),
    _fault(
        "engine-away",
        "wireguard_available",
        "worker",
        _ENGINES.replace("{}", "mount --bind /dev/null"),
        _ENGINES.replace("{}", "umount"),
        by_hand="the programs are hidden by mounts",
    ),
    _fault(
        "engine-stopped",
        "device_up",
        "worker",
        f"kill -STOP {process_id('engine')}",
        f"kill -CONT {process_id('engine')}",
    ),
    _clock("clock-behind", "-1h"),
    _clock("clock-ahead", "+1h"),
    _fault(
        "conntrack-full",
        "conntrack_room",
        "worker",
        *_instead("/proc/sys/net/netfilter/nf_conntrack_count", "999999"),
        by_hand="the count is simulated",
    ),
    _fault(
        "rule-from-steals",
        "overlay_route",
        "worker",
        f"{_OTHER_LAN}; ip route add default dev lan7 table 107; ip rule add from {{worker}} lookup 107 priority 90",
        f"ip rule delete priority 90; {_END_OTHER_LAN}",
        leftover="ip rule delete priority 50",
    ),
    _fault(
        "rule-to-steals",
        "overlay_route",
        "head",
        f"{_OTHER_LAN}; ip route add default dev lan7 table 107; ip rule add to {{worker}} lookup 107 priority 90",
        f"ip rule delete priority 90; {_END_OTHER_LAN}",
        leftover="ip rule delete priority 50",
    ),
    _fault(
        "rule-prohibits",
        "overlay_route",
        "worker",
        "ip rule add to 10.99.0.0/16 prohibit priority 90",
        "ip rule delete priority 90",
        leftover="ip rule delete priority 50",
    ),
    # The agent restores its routes; only if it cannot, or may not, is there a fault to find.
    _fault(
        "route-removed-again-and-again",
        "overlay_route",
        "worker",
        _AGAIN.replace("{}", f"ip route del {_OVERLAY} dev meshray0"),
        _END_AGAIN,
        by_hand="another program removes it again",
    ),
    _fault(
        "route-replaced-again-and-again",
        "overlay_route",
        "worker",
        _AGAIN.replace("{}", f"ip route replace {_OVERLAY} dev eth0"),
        _END_AGAIN,
        by_hand="another program replaces it again",
    ),
    _fault(
        "route-removed-agent-frozen",
        "agent_running",
        "worker",
        f"kill -STOP {process_id('agent')}; ip route del {_OVERLAY} dev meshray0",
        f"kill -CONT {process_id('agent')}",
    ),
    _fault(
        "route-replaced-agent-frozen",
        "agent_running",
        "worker",
        f"kill -STOP {process_id('agent')}; ip route replace blackhole {_OVERLAY}",
        f"kill -CONT {process_id('agent')}",
    ),
    _fault(
        "route-removed-agent-killed",
        "agent_running",
        "worker",
        f"kill -KILL {process_id('agent')}; ip route del {_OVERLAY} dev meshray0",
        "meshray up",
    ),
    _fault("agent-socket-removed", "agent_running", "worker", "rm /run/meshray/agent.sock", "meshray up"),
    _fault(
        "narrower-route-steals",
        "overlay_route",
        "worker",
        "ip route add {head} dev eth0",
        "ip route del {head} dev eth0",
        by_hand="only its owner may remove that route",
    ),
    _fault(
        "blackhole-for-a-peer",
        "overlay_route",
        "head",
        "ip route add blackhole {worker}",
        "ip route del blackhole {worker}",
        by_hand="only its owner may remove that route",
    ),
    _fault(
        "docker-network-overlaps",
        "other_vpns",
        "head",
        f"ip link add {_DOCKER} type bridge; ip address add 10.99.77.1/24 dev {_DOCKER}; ip link set {_DOCKER} up",
        f"ip link delete {_DOCKER}",
        by_hand="only its owner may change that network",
    ),
    _fault(
        "vpn-overlaps",
        "other_vpns",
        "worker",
        "ip tuntap add tun7 mode tun; ip address add 10.99.66.1/24 dev tun7; ip link set tun7 up",
        "ip link delete tun7",
        by_hand="only its owner may change that network",
    ),
    _fault(
        "state-read-only",
        "disk_space",
        "worker",
        f"mount --bind {_STATE} {_STATE}; mount -o remount,bind,ro {_STATE}",
        f"umount --lazy {_STATE}",
        by_hand="only its owner may change that mount",
    ),
    _fault(
        "disk-full",
        "disk_space",
        "worker",
        "used=$(df --output=used -k /var/lib | tail -1); mount -o remount,size=$((used + 256))k /var/lib",
        "mount -o remount,size=50% /var/lib",
        by_hand="a user has to decide what to delete",
    ),
    _fault(
        "inodes-gone",
        "disk_space",
        "worker",
        "used=$(df --output=iused /var/lib | tail -1); mount -o remount,nr_inodes=$((used)) /var/lib",
        "mount -o remount,nr_inodes=1000000 /var/lib",
        by_hand="a user has to decide what to delete",
    ),
    _fault(
        "few-files",
        "open_files",
        "worker",
        f"agent={process_id('agent')}; prlimit --pid $agent --nofile --noheadings --output=SOFT > /tmp/soft; "
        "prlimit --pid $agent --nofile=200:",
        f"prlimit --pid {process_id('agent')} --nofile=$(($(cat /tmp/soft))):",
    ),
    _fault(
        "udp-dropped", "udp_port_open", "head", *_table("inet", "strict", "input priority 5", "udp dport 51888 drop")
    ),
    _fault(
        "udp-dropped-raw",
        "udp_port_open",
        "head",
        "iptables -t raw -I PREROUTING -p udp --dport 51888 -j DROP",
        "iptables -t raw -D PREROUTING -p udp --dport 51888 -j DROP",
    ),
    _fault(
        "udp-dropped-at-card",
        "udp_port_open",
        "head",
        *_table("netdev", "early", 'ingress device "eth0" priority -500', "udp dport 51888 drop"),
    ),
    _fault(
        "tcp-dropped",
        "tcp_port_open",
        "head",
        *_table("inet", "strict", "prerouting priority -150", "tcp dport 51888 drop"),
    ),
    _fault(
        "overlay-dropped-at-card",
        "overlay_admitted",
        "worker",
        *_table("netdev", "early", 'ingress device "meshray0" priority -500', "tcp dport 1-65535 drop"),
    ),
    _fault(
        "overlay-dropped-legacy",
        "overlay_admitted",
        "worker",
        "iptables-legacy -t raw -I PREROUTING -i meshray0 -p tcp -j DROP",
        "iptables-legacy -t raw -F; iptables-legacy -t raw -X",
    ),
    _fault(
        "port-taken",
        "tcp_port_open",
        "head",
        _GRAB.replace("{}", f"kill -KILL {process_id('coordinator')}"),
        "kill $(cat /tmp/grabber.pid)",
        by_hand="a user has to end that program",
    ),
    # The agent itself admits members to this port in the tables that it may change.
    _fault(
        "metrics-dropped-at-card",
        "metrics_port",
        "worker",
        *_table("netdev", "early", 'ingress device "meshray0" priority -500', "tcp dport 20190 drop"),
    ),
    _fault(
        "metrics-dropped-legacy",
        "metrics_port",
        "head",
        "iptables-legacy -t raw -I PREROUTING -i meshray0 -p tcp --dport 20190 -j DROP",
        "iptables-legacy -t raw -F; iptables-legacy -t raw -X",
    ),
    _fault(
        "metrics-port-taken",
        "metrics_port",
        "worker",
        f"kill -KILL {process_id('agent')}; {_TAKE_METRICS}; meshray up",
        # The agent tries again every few seconds.
        "kill $(cat /tmp/taker.pid)",
        by_hand="a user has to end that program",
    ),
    _fault(
        "guard-cannot-be-set",
        "guard",
        "worker",
        _NO_FIREWALL,
        # The agent checks again when the rules change.
        f"for program in {FIREWALLS}; do umount $program; done; nft add table ip look; nft delete table ip look",
        by_hand="the programs are hidden by mounts",
    ),
    _fault(
        "answers-by-another-card",
        "rp_filter",
        "head",
        f"{_SECOND_CARD}\n{_STRICT.format(1)}",
        f"{_STRICT.format(0)}; ip link delete card2; ip route flush cache",
        leftover="echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter",
    ),
)
