"""Attacks of outside machines and other users on a node's guard: it closes Ray's ports only, or no Ray starts.

         switch wan 203.0.113.0/24
  ┌─────────────┴────────────┐
node 203.0.113.10        outsider 203.0.113.99
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.host import USER, Host, HostProcess
from tests.lab.neighbours import link_local
from tests.lab.scan import open_ports
from tests.lab.test_closing import break_nf_tables
from tests.lab.world import World

MESH_PORT, DATABASE, RAYS = 51888, 5432, (6379, 8265, 20101, 20102, 20104)
UP_S = 240
RAY_ARGS = ("--", "--num-cpus=1", f"--object-store-memory={100 * 2**20}")
LISTEN = """
import socket, sys, time
family = int(sys.argv[1])
end = socket.socket(family)
if family == socket.AF_INET6:
    end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
end.bind(("0.0.0.0" if family == socket.AF_INET else "::", int(sys.argv[2])))
end.listen()
print("ready", flush=True)
time.sleep(3600)
"""


@dataclass
class Lab:
    """The hosts of the picture above."""

    node: Host
    outsider: Host

    def seen(self, *ports: int) -> list[set[int]]:
        """Return the node's ports that answer the outsider, by IPv4 and IPv6."""
        local = link_local(self.node, "eth0", "eth0")
        return open_ports(self.outsider, str(self.node.address), local, ports=ports)

    def listen(self, family: int, port: int, *, user: str = "root", environment: str = "") -> HostProcess:
        """Start a server of this user on the node."""
        code = [*(["env", environment] if environment else []), sys.executable, "-c", LISTEN, str(family), str(port)]
        process = self.node.popen(code, user=user)
        self.node.wait_until(lambda: "ready" in process.output, 20, "the listener")
        return process


@pytest.fixture
def lab() -> Iterator[Lab]:
    with World("attacks") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        node = world.host("node", wan, "203.0.113.10")
        yield Lab(node, world.host("outsider", wan, "203.0.113.99"))


def test_a_fake_ray_process_does_not_close_other_ports(lab: Lab) -> None:
    """The environment of Ray on the same port, IPv6: nothing of another program's is closed by it."""
    lab.node.run(["meshray", "init", "--json", "--no-ray"], deadline_s=UP_S)
    lab.listen(2, DATABASE)
    claim = "RAY_AUTH_TOKEN_PATH=/run/meshray/ray_token"
    lab.listen(10, DATABASE, user=USER, environment=claim)
    lab.listen(10, 8443, user="root", environment=claim)  # As Ray's own user does: its own port, and no other.
    lab.listen(2, 8443)
    lab.node.wait_until(lambda: lab.seen(8443)[1] == set(), 20, "the port of Ray's user being closed")
    assert lab.seen(DATABASE, 8443) == [{DATABASE, 8443}, {DATABASE}]


def test_a_ray_started_by_hand_is_closed(lab: Lab) -> None:
    """As `ray up` does it, by a user of whom meshray knows nothing; another program of that user stays open."""
    lab.node.run(["meshray", "init", "--json", "--no-ray"], deadline_s=UP_S)
    lab.listen(2, DATABASE, user=USER)
    command = [
        *("ray", "start", "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--num-cpus=1"),
        *(f"--object-store-memory={100 * 2**20}", "--ray-client-server-port=10001"),
    ]
    home = {"HOME": f"/home/{USER}", "RAY_AUTH_MODE": "disabled"}
    lab.node.run(command, user=USER, env=home, deadline_s=UP_S)
    some = (6379, 8265, 10001, DATABASE, MESH_PORT)
    wanted = [{DATABASE, MESH_PORT}, {MESH_PORT}]
    lab.node.wait_until(lambda: lab.seen(*some) == wanted, 20, "the other Ray being closed")
    found = open_ports(lab.outsider, str(lab.node.address), link_local(lab.node, "eth0", "eth0"))
    assert found == wanted
    lab.node.run(["ray", "stop", "--force"], user=USER, env=home, check=False, deadline_s=UP_S)


def break_all(node: Host) -> None:
    break_nf_tables(node)
    for name in ("iptables", "ip6tables"):
        for end in ("", "-save", "-restore"):
            node.shell(f"ln -sf /bin/false /usr/sbin/{name}-legacy{end}")


def test_no_ray_starts_unguarded(lab: Lab) -> None:
    lab.node.shell("cp -a /usr/sbin /root/sbin")
    break_all(lab.node)
    refused = lab.node.run(["meshray", "init", "--json", *RAY_ARGS], check=False, deadline_s=UP_S)
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["code"] == "unguarded"
    assert lab.seen(*RAYS) == [set(), set()]
    assert not lab.node.shell("pgrep -x gcs_server || true").stdout.strip()

    lab.node.run(["meshray", "init", "--json", "--unguarded", *RAY_ARGS], deadline_s=UP_S)
    status = lab.node.run(["meshray", "status", "--json"], check=False).json()
    assert status["unguarded"] is True
    assert "guard" in [problem["code"] for problem in status["health"]]
    assert "--unguarded" in lab.node.run(["meshray", "status"], check=False).stdout
    doctor = lab.node.run(["meshray", "doctor", "--json"], check=False, deadline_s=UP_S).json()
    guard = next(check for check in doctor["checks"] if check["code"] == "guard")
    # That option does not affect forwarding, which the head as a hub cannot guard either.
    assert (guard["status"], "--unguarded" in guard["evidence"]) == ("fail", True)
    lab.node.run(["meshray", "leave", "--yes"], check=False, deadline_s=UP_S)


def test_with_only_iptables_legacy_ray_is_guarded(lab: Lab) -> None:
    lab.node.shell("cp -a /usr/sbin /root/sbin")
    break_nf_tables(lab.node)
    lab.node.run(["meshray", "init", "--json", "--open", "2222", *RAY_ARGS], deadline_s=UP_S)
    assert lab.seen(*RAYS, MESH_PORT) == [{MESH_PORT}] * 2
    status = lab.node.run(["meshray", "status", "--json"], check=False).json()
    assert (status["open"], status["unguarded"]) == (["2222"], False)
    doctor = lab.node.run(["meshray", "doctor", "--json"], check=False, deadline_s=UP_S).json()
    guard = next(check for check in doctor["checks"] if check["code"] == "guard")
    assert guard["status"] == "ok", guard
    # The agent's own table ends with it; the rules of iptables remain.
    lab.node.shell("kill -9 $(cat /run/meshray/agent.pid | grep -o '[0-9]*' | head -1)")
    assert lab.seen(*RAYS)[0] == set()
    lab.node.run(["meshray", "leave", "--yes"], check=False, deadline_s=UP_S)
