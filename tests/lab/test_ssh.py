"""Enrolments through a real sshd, while the coordinator's TCP port is closed.

           switch wan 203.0.113.0/24
     ┌──────────────────┴─────────────────┐
   head                                worker
203.0.113.10                        203.0.113.20
lets in UDP 51888 and ssh           lets in ssh
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshray.model.token import Token
from tests.lab.host import USER, Host
from tests.lab.world import World

#: The folder of meshray in every host, which is not on sshd's own PATH.
MESHRAY = str(Path(sys.prefix) / "bin/meshray")
ONLY = """nft -f - <<'RULES'
table inet host_firewall {{
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        ct state established,related accept
        tcp dport 22 accept
        udp dport {{ {udp} }} accept
    }}
}}
RULES"""
#: Keys and configuration of a machine that admits these users by key, and itself connects anywhere without asking.
SSHD = """
set -e
mkdir -p /run/sshd /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /root/host_key
cat > /root/sshd_config <<'END'
HostKey /root/host_key
AuthorizedKeysFile /etc/authorized_key
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
END
grep -q '^ada:' /etc/shadow || echo 'ada:*:19000:0:99999:7:::' >> /etc/shadow
"""
CLIENT = """
set -e
mkdir -p /root/.ssh
[ -e /root/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
printf 'StrictHostKeyChecking accept-new\\nIdentitiesOnly yes\\n' > /root/.ssh/config
chmod -R go-rwx /root/.ssh
cat /root/.ssh/id_ed25519.pub
"""


def authorise(server: Host, client: Host) -> None:
    """Start the server's sshd, which knows the client's key."""
    key = client.shell(CLIENT).stdout.strip()
    server.shell(SSHD)
    server.shell(f"echo {shlex.quote(key)} > /etc/authorized_key")
    server.popen(["/usr/sbin/sshd", "-D", "-e", "-f", "/root/sshd_config"], name="sshd")
    server.wait_until(lambda: listens(server, 22), 10, "sshd")


def listens(host: Host, port: int) -> bool:
    return bool(host.run(["ss", "-Htln", f"sport = :{port}"]).stdout)


class Place:
    """Two hosts, each of which may log in to the other, and a mesh."""

    def __init__(self, world: World) -> None:
        wan = world.switch("wan", "203.0.113.0/24")
        self.head, self.worker = (world.host(name, wan, f"203.0.113.{n}") for name, n in (("head", 10), ("worker", 20)))
        authorise(self.head, self.worker)
        authorise(self.worker, self.head)
        self.head.shell(ONLY.format(udp="51888"))
        self.worker.shell(ONLY.format(udp="7"))
        self.token = answer(self.head, "init", "--no-ray")["token"]


def answer(host: Host, *words: str) -> dict[str, Any]:
    output = host.run(["meshray", words[0], *words[1:], "--json"], deadline_s=90).json()
    assert isinstance(output, dict)
    return output


def sees_coordinator(host: Host) -> bool:
    """Return whether the node's agent is connected to the coordinator; until it is, status ends with exit code 3."""
    return bool(host.run(["meshray", "status", "--json"], check=False).json()["coordinator"]["reachable"])


def refused(host: Host, *words: str) -> tuple[int, dict[str, str]]:
    done = host.run(["meshray", *words, "--json"], check=False, deadline_s=90)
    error = json.loads(done.stdout)["error"]
    assert isinstance(error, dict)
    return done.returncode, error


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with World("ssh") as world:
        yield Place(world)


def nodes(place: Place) -> set[str]:
    return {str(node["name"]) for node in answer(place.head, "node", "list")["nodes"]}


def check_tunnel(place: Place) -> None:
    """Check that the tunnel is up, and that traffic to the coordinator goes through it."""
    handshakes = place.worker.run(["wg", "show", "meshray0", "latest-handshakes"]).stdout.split()
    assert int(handshakes[1]) > 0
    assert place.worker.can_reach("10.99.0.1")
    place.worker.wait_until(lambda: sees_coordinator(place.worker), 20, "the coordinator through the tunnel")
    connections = place.worker.run(["ss", "-Htn", "state", "established", "dport = :51888"]).stdout
    assert "10.99.0.1:51888" in connections
    assert str(place.head.address) not in connections


def test_without_ssh_the_coordinator_is_out_of_reach(place: Place) -> None:
    code, error = refused(place.worker, "join", "--no-ray", place.token)
    assert (code, error["code"]) == (5, "coordinator_unreachable")


def test_an_enrolment_through_ssh(place: Place) -> None:
    joined = answer(place.worker, "join", "--no-ray", "--via", f"ssh://root@{place.head.address}:22", place.token)
    assert joined["node"]["name"] == "worker"
    check_tunnel(place)
    (output,) = (node for node in answer(place.head, "node", "list")["nodes"] if node["name"] == "worker")
    assert output["endpoints"][0] == f"{place.worker.address}:51888"
    listening = place.worker.run(["wg", "show", "meshray0", "listen-port"]).stdout.strip()
    assert listening == "51888"
    answer(place.worker, "leave", "--yes")
    assert nodes(place) == {"head"}


def test_a_failing_ssh_is_quoted_and_leaves_nothing(place: Place) -> None:
    worker, head = place.worker, place.head
    for target, words in (
        (f"ssh://{USER}x@{head.address}", "Permission denied"),
        (f"ssh://root@{head.address}:2200", "2200"),
        ("ssh://no-such-host.example", "resolve"),
    ):
        code, error = refused(worker, "join", "--no-ray", "--via", target, place.token)
        assert (code, error["code"]) == (5, "ssh_failed"), error
        assert words in error["message"]
    wrong_port = Token.parse(place.token)
    strange = Token(
        wrong_port.mesh_id,
        (type(wrong_port.coordinators[0])("203.0.113.10", 9),),
        wrong_port.fingerprint,
        wrong_port.token_id,
        wrong_port.secret,
    )
    code, error = refused(worker, "join", "--no-ray", "--via", f"ssh://root@{head.address}", strange.encode())
    assert (code, error["code"]) == (5, "ssh_failed")
    assert "refused" in error["message"].lower()
    assert not worker.path("/var/lib/meshray").exists()
    assert nodes(place) == {"head"}


def test_the_head_adds_a_node(place: Place) -> None:
    target = f"ssh://root@{place.worker.address}"
    before = len(answer(place.head, "token", "list")["tokens"])
    added = answer(place.head, "node", "add", target, "--meshray", MESHRAY, "--no-ray", "--name", "gpu-1")
    assert added["node"]["name"] == "gpu-1"
    assert nodes(place) == {"head", "gpu-1"}
    check_tunnel(place)
    tokens = answer(place.head, "token", "list")["tokens"]
    assert len(tokens) == before + 1
    assert (tokens[-1]["uses"], tokens[-1]["used"]) == (1, 1)
    again = answer(place.head, "node", "add", target, "--meshray", MESHRAY, "--no-ray")
    assert (again["already"], again["node"]) == (True, added["node"])
    assert answer(place.head, "token", "list")["tokens"][-1]["revoked"] is True
    answer(place.worker, "leave", "--yes")


def test_the_head_adds_a_node_through_a_user_with_sudo(place: Place) -> None:
    worker = place.worker
    worker.shell(f"echo '{USER} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/lab; chmod 440 /etc/sudoers.d/lab")
    target = f"ssh://{USER}@{worker.address}"
    added = answer(place.head, "node", "add", target, "--meshray", MESHRAY, "--no-ray")
    assert added["node"]["name"] == "worker"
    answer(worker, "leave", "--yes")
    worker.shell("rm /etc/sudoers.d/lab")
    code, error = refused(place.head, "node", "add", target, "--meshray", MESHRAY, "--no-ray")
    assert (code, error["code"]) == (1, "no_sudo_there"), error
    code, error = refused(place.head, "node", "add", target, "--meshray", "/no/meshray")
    assert (code, error["code"]) == (1, "no_meshray_there")


def test_an_unreachable_head_dials_the_worker_that_it_added() -> None:
    with World("ssh-push") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        worker = world.host("worker", wan, "203.0.113.20")
        authorise(worker, head)
        head.drop_inbound()
        worker.shell(ONLY.format(udp="51888"))
        answer(head, "init", "--no-ray")
        added = answer(head, "node", "add", f"ssh://root@{worker.address}", "--meshray", MESHRAY, "--no-ray")
        assert added["path"]["kind"] in ("hub", "direct")
        worker.wait_until(lambda: sees_coordinator(worker), 20, "the coordinator through the tunnel")
        assert head.can_reach(added["node"]["ip"])
        assert not worker.can_reach(head.address)
        # And again after the head has forgotten what its WireGuard had learned.
        answer(head, "down")
        answer(head, "up")
        head.wait_until(lambda: head.can_reach(added["node"]["ip"]), 30, "the worker again")
