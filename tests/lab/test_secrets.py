"""The shared secrets change while connections run, and a removed node's knowledge is useless.

        switch wan 192.88.98.0/24
    ┌─────────┬──────┴──┬──────────┐
   head       a         b         gone
   (hub)      └─ direct ┘

A TCP connection and a ping a → b over the direct path, and a connection b → head, survive `node rm gone`, then `secrets
rotate`, and the handshakes that WireGuard makes with the new keys.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from meshray.model.keys import MeshSecret, PublicKey
from tests.lab.cluster import Cluster, enrolment
from tests.lab.conversation import Conversation
from tests.lab.host import Host
from tests.lab.test_main_job import wireguard_peers
from tests.lab.world import World

#: TCP's own retransmission, once: no peer is added again when a preshared key changes.
SILENCE_S = 1.5
#: The time from the command until every device has the new keys.
CHANGED_S = 5
#: WireGuard renews the keys of a session after 120 s.
RENEWED_S = 150
RAY_S = 120


@dataclass
class Net:
    world: World
    cluster: Cluster
    talks: list[Conversation] = field(default_factory=list)
    #: The removed node's knowledge.
    known: dict[str, Any] = field(default_factory=dict)

    def host(self, name: str) -> Host:
        return self.world.hosts[name]

    @property
    def staying(self) -> list[Host]:
        return [self.host(name) for name in ("head", "a", "b")]

    def keys_in_use(self) -> set[str]:
        return {peer["psk"] for host in self.staying for peer in wireguard_peers(host)}

    def public_keys(self) -> set[PublicKey]:
        return {PublicKey.parse(peer["public_key"]) for host in self.staying for peer in wireguard_peers(host)}

    def derived_from(self, secret: str) -> set[str]:
        keys, known = self.public_keys(), MeshSecret.parse(secret)
        return {known.preshared_key(one, other).reveal() for one, other in itertools.combinations(keys, 2)}

    def is_direct(self) -> bool:
        nodes = self.cluster.meshray(self.host("a"), "status", check=False)["nodes"]
        return any(node["name"] == "b" and node["path"]["kind"] == "direct" for node in nodes)


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("test-secrets") as world:
        wan = world.switch("wan", "192.88.98.0/24")
        head = world.host("head", wan, "192.88.98.10")
        workers = [world.host(name, wan, f"192.88.98.{20 + n}") for n, name in enumerate(("a", "b", "gone"))]
        net = Net(world, Cluster.start(head, workers))
        world.wait_until(net.is_direct, 30, "a direct path a - b")
        yield net
        for talk in net.talks:
            talk.end()


def test_no_connection_is_lost_and_the_removed_node_derives_no_key_in_use(net: Net) -> None:
    ip = net.cluster.ip
    net.talks = [
        Conversation(net.host("b"), net.host("a"), ip(net.host("b")), 7301),
        Conversation(net.host("head"), net.host("b"), ip(net.host("head")), 7302),
    ]
    ping = net.host("a").popen(["ping", "-n", "-i0.2", ip(net.host("b"))], name="ping")
    net.known = enrolment(net.host("gone"))
    assert net.keys_in_use() <= net.derived_from(net.known["mesh_secret"])

    begun = time.monotonic()
    removed = net.host("head").run(["meshray", "node", "rm", "--json", "--yes", "gone"]).json()
    assert (removed["secrets"]["epoch"], removed["secrets"]["started"]) == (2, True)
    old = [net.known["mesh_secret"]]
    net.world.wait_until(
        lambda: not net.keys_in_use() & net.derived_from(old[0]), CHANGED_S, "no key that the removed node can derive"
    )
    second = enrolment(net.host("a"))
    assert second["mesh_secret"] not in old
    assert net.keys_in_use() <= net.derived_from(second["mesh_secret"])
    old.append(second["mesh_secret"])
    rotated = net.host("head").run(["meshray", "secrets", "rotate", "--json"]).json()
    assert (rotated["epoch"], rotated["away"], rotated["static"]) == (3, [], [])
    net.world.wait_until(
        lambda: (
            net.keys_in_use() <= net.derived_from(enrolment(net.host("b"))["mesh_secret"])
            and not net.keys_in_use() & net.derived_from(old[1])
        ),
        CHANGED_S,
        "the keys of the third epoch",
    )
    changed = time.time()

    def renewed() -> bool:
        peers = [peer for host in net.staying for peer in wireguard_peers(host)]
        return all(float(peer["handshake"]) > changed for peer in peers)

    net.world.wait_until(renewed, RENEWED_S, "handshakes with the new keys")
    for talk in net.talks:
        talk.wait_until_it_goes_on(10)
        assert talk.longest_silence_s(begun) < SILENCE_S, talk.name
    assert net.is_direct()
    ping.send_signal(signal.SIGINT)
    ping.wait(10)
    summary = next(line for line in ping.output.splitlines() if "packets transmitted" in line)
    sent, received = (int(part.split()[0]) for part in summary.split(",")[:2])
    assert sent - received <= 1, summary
    secrets = {enrolment(host)["mesh_secret"] for host in net.staying}
    assert len(secrets) == 1 and not secrets & set(old)


def test_the_old_secrets_leave_the_disks(net: Net) -> None:
    def held(host: Host) -> bool:
        return not enrolment(host)["older_mesh_secrets"]

    net.world.wait_until(lambda: all(held(host) for host in net.staying), 15, "one mesh secret on every node")
    for host in net.staying:
        assert host.path("/var/lib/meshray/node.json").stat().st_mode & 0o777 == 0o600


def test_ray_refuses_the_old_token_after_the_next_start_of_its_head(net: Net) -> None:
    head, old = net.host("head"), str(net.known["ray_token"])
    assert token_file(head) == old, "it runs with the token with which it was started"
    assert answer_to(head, net.cluster, old) == 200
    assert alive(net) == 3
    net.cluster.meshray(head, "down")
    net.cluster.meshray(head, "up")
    net.world.wait_until(lambda: alive(net) == 3, RAY_S, "three living nodes")
    new = token_file(head)
    assert new != old
    assert [token_file(host) for host in net.staying] == [new] * 3
    assert answer_to(head, net.cluster, old) in (401, 403)
    assert answer_to(head, net.cluster, new) == 200
    code = "import ray; ray.init('auto', log_to_driver=False); print(len([n for n in ray.nodes() if n['Alive']]))"
    assert net.cluster.python(code) == 3
    net.world.wait_until(
        lambda: all(old not in host.path("/var/lib/meshray/node.json").read_text() for host in net.staying),
        30,
        "no node that holds the old token",
    )


def token_file(host: Host) -> str:
    return host.path("/run/meshray/ray_token").read_text()


def alive(net: Net) -> int:
    nodes = net.cluster.meshray(net.host("head"), "status", check=False).get("nodes", [])
    return sum(1 for node in nodes if node["online"] and node["ray"]["alive"])


def answer_to(head: Host, cluster: Cluster, token: str) -> int:
    """Return the HTTP status of the head's dashboard for this token."""
    url = f"http://{cluster.ip(head)}:8265/api/v0/nodes"
    words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "@-", url]
    return int(head.run(words, stdin=f"Authorization: Bearer {token}\n", check=False).stdout)
