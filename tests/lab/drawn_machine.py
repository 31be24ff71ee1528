"""Drawn faults of the layers process, files, clock, identity and name: what goes wrong on one machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

from tests.lab.drawn_fault import DrawnFault, Step
from tests.lab.drawn_rules import NO_TCP
from tests.lab.drawn_stage import NEAR, NEAR_LAN
from tests.lab.drawn_verdict import Truth
from tests.lab.faults_host import process_id

_NODES = ("head", "near", "far")
_STATE = "/var/lib/meshray"
#: What the doctor says of a process that a signal has stopped, and of one that has ended.
_STOPPED, _ENDED = "stopped", "no agent runs|has ended|has stopped|was killed|not running"


def _truth(codes: str, nodes: str, says: str = "", never: str = "", *, warning: bool = False) -> Truth:
    return Truth(frozenset(codes.split()), frozenset(nodes.split()), says, never, warning)


def _fault(layer: str, place: str, what: str, inject: str, heal: str, effect: Step, truth: Truth) -> DrawnFault:
    return DrawnFault(layer, place, what, (Step(place, inject),), (Step(place, heal),), effect, place, truth)


def processes() -> Iterator[DrawnFault]:
    """Yield processes of meshray that a signal stops or ends, asked there and at the head."""
    for place, part in product(_NODES, ("agent", "engine")):
        pid = process_id(part)
        stopped = Step(place, f"grep -q '^State:.T' /proc/{pid}/status")
        truth = _truth("agent_running" if part == "agent" else "device_up", place, f"{_STOPPED}|does not answer")
        yield _fault("process", place, f"{part}-stopped", f"kill -STOP {pid}", f"kill -CONT {pid}", stopped, truth)
    for place in _NODES:
        pid, ended = process_id("agent"), Step(place, f"! kill -0 {process_id('agent')}")
        yield _fault(
            *("process", place, "agent-killed", f"kill -KILL {pid}", "meshray up", ended),
            _truth("agent_running", place, _ENDED),
        )
        gone = Step(place, "! test -e /run/meshray/agent.sock")
        remove, truth = "rm /run/meshray/agent.sock", _truth("agent_running", place)
        yield _fault("process", place, "agent-socket-removed", remove, "meshray up", gone, truth)
    for place, signal in product(("near", "far"), ("STOP", "KILL")):
        pid = process_id("agent")
        heal = f"kill -CONT {pid}" if signal == "STOP" else "meshray up"
        effect = f"grep -q '^State:.T' /proc/{pid}/status" if signal == "STOP" else f"! kill -0 {pid}"
        yield DrawnFault(
            *("process", place, f"agent-gets-{signal}"),
            (Step(place, f"kill -{signal} {pid}"),),
            (Step(place, heal),),
            Step(place, effect),
            "head",
            _truth("node_answers agent_running", place, "agent"),
        )
    pid = process_id("coordinator")
    for asked in _NODES:
        yield DrawnFault(
            *("process", "head", "coordinator-stopped"),
            (Step("head", f"kill -STOP {pid}"),),
            (Step("head", f"kill -CONT {pid}"),),
            Step("head", f"grep -q '^State:.T' /proc/{pid}/status"),
            asked,
            _truth("coordinator_tcp", f"{asked} head", "the coordinator hangs|signal"),
        )


def files() -> Iterator[DrawnFault]:
    """Yield file systems and limits of files that hinder the agent."""
    for place in _NODES:
        truth = _truth("disk_space", place)
        yield _fault(
            *("files", place, "state-read-only"),
            f"mount --bind {_STATE} {_STATE}; mount -o remount,bind,ro {_STATE}",
            f"umount --lazy {_STATE}",
            Step(place, f"! touch {_STATE}/probe"),
            truth,
        )
        for what, kilobytes in (("full", 256), ("almost-full", 8192)):
            yield _fault(
                *("files", place, f"disk-{what}"),
                "used=$(df --output=used -k /var/lib | tail -1); "
                f"mount -o remount,size=$((used + {kilobytes}))k /var/lib",
                "mount -o remount,size=50% /var/lib",
                Step(place, f"test $(df --output=avail -k /var/lib | tail -1) -le {kilobytes}"),
                truth,
            )
        yield _fault(
            *("files", place, "inodes-gone"),
            "used=$(df --output=iused /var/lib | tail -1); mount -o remount,nr_inodes=$((used)) /var/lib",
            "mount -o remount,nr_inodes=1000000 /var/lib",
            Step(place, "test $(df --output=iavail /var/lib | tail -1) -le 0"),
            truth,
        )
        agent = process_id("agent")
        yield _fault(
            *("files", place, "few-open-files"),
            f"prlimit --pid {agent} --nofile --noheadings --output=SOFT > /tmp/soft; "
            f"prlimit --pid {agent} --nofile=200:",
            f"prlimit --pid {agent} --nofile=$(($(cat /tmp/soft))):",
            Step(place, f"test $(prlimit --pid {agent} --nofile --noheadings --output=SOFT) -eq 200"),
            _truth("open_files", place),
        )


#: Ends with status 0 as soon as this node has an answer of its hub, or of a worker.
_HAS_A_PATH = (
    "meshray status --json | "
    f"{sys.executable} -c 'import json, sys\n"
    'nodes = json.load(sys.stdin)["nodes"]\n'
    'sys.exit(not any(node["path"]["rtt_ms"] is not None for node in nodes))\''
)


def clocks() -> Iterator[DrawnFault]:
    """Yield agents whose clock is wrong: set for the agent alone, by the library of the package faketime."""
    library = "$(ls /usr/lib/*/faketime/libfaketimeMT.so.1)"
    agent = f"{sys.executable} -m meshray.agent"
    for place, shift in product(("near", "far"), ("-1h", "+1h", "-10m", "-2h")):
        faked = f"LD_PRELOAD={library} FAKETIME={shift} FAKETIME_DONT_FAKE_MONOTONIC=1"
        yield _fault(
            *("clock", place, f"clock-{shift}"),
            f"kill -KILL {process_id('agent')}; {faked} setsid {agent} > /dev/null 2>&1 < /dev/null &",
            f"kill -KILL {process_id('agent')}; setsid {agent} > /dev/null 2>&1 < /dev/null &",
            Step(place, _HAS_A_PATH),
            _truth("clock", place, "clock is wrong|set-ntp"),
        )


#: Claims an address of the LAN for this machine three times a second.
_CLAIM = """cat > /tmp/claim.py <<'CODE'
import socket, sys, time
from pathlib import Path
mac = bytes.fromhex(Path("/sys/class/net/eth0/address").read_text().strip().replace(":", ""))
address = socket.inet_aton(sys.argv[1])
packet = b"\\xff" * 6 + mac + bytes.fromhex("0806000108000604") + b"\\x00\\x02" + mac + address + b"\\xff" * 6 + address
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
card.bind(("eth0", 0))
while True:
    card.send(packet)
    time.sleep(0.3)
CODE
ip address add {}/32 dev eth0
setsid {} /tmp/claim.py {} > /dev/null 2>&1 < /dev/null &
echo $! > /tmp/claim.pid"""


def identities() -> Iterator[DrawnFault]:
    """Yield nodes that were removed, and machines that claim the address of another."""
    for place in ("near", "far"):
        # The other worker's address and both workers' paths change as well; all must be well again at the end.
        yield DrawnFault(
            *("identity", place, "removed-from-the-mesh"),
            (Step("head", f"meshray node rm {place} --yes"),),
            (Step(place, "meshray leave --yes; meshray join --no-ray --transport udp {token}"),),
            Step(place, "meshray status; test $? -eq 4"),
            place,
            _truth("credential", place),
        )
    for what, address in (("address-of-near-claimed", NEAR), ("address-of-the-gateway-claimed", NEAR_LAN)):
        claim = _CLAIM.replace("{}", address, 1).replace("{}", sys.executable, 1).replace("{}", address, 1)
        observer, mac = ("near-nat", "lan") if address == NEAR else ("near", "eth0")
        heal = f"kill $(cat /tmp/claim.pid); ip address del {address}/32 dev eth0"
        yield DrawnFault(
            *("identity", "twin", what),
            (Step("twin", claim),),
            (Step("twin", heal), Step(observer, f"ip neigh flush dev {mac}")),
            Step("near", NO_TCP),
            "near",
            _truth(
                "one_address outer_addresses coordinator_tcp",
                "near",
                "another machine|two machines|duplicate|same address",
            ),
        )


def names() -> Iterator[DrawnFault]:
    """Yield machines whose own name does not resolve, or takes long; without Ray a warning is right."""
    for place in _NODES:
        heal = "cat /tmp/hosts > /etc/hosts; nft delete table ip drawn"
        for what, more in (("own-name-missing", ""), ("name-server-silent", "silent")):
            inject = "cp /etc/hosts /tmp/hosts; echo 127.0.0.1 localhost > /etc/hosts"
            if more:
                # Packets to the name server are dropped instead of refused.
                inject += (
                    "; nft 'add table ip drawn; add chain ip drawn c { type filter hook output priority 0; }; "
                    "add rule ip drawn c udp dport 53 drop'"
                )
            truth = _truth("hostname_resolves", place, warning=True)
            effect = Step(place, "! timeout 0.5 getent ahostsv4 $(hostname)")
            yield _fault("name", place, what, inject, heal, effect, truth)


MACHINE: tuple[DrawnFault, ...] = (*processes(), *files(), *clocks(), *identities(), *names())
