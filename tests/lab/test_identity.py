"""Keys change and nodes are removed while connections run.

        switch wan 192.88.99.0/24
    ┌─────────┬──────┴──┬──────────┐
   head       a         b         walled     drops what comes in over UDP: its tunnel is a WebSocket (wss)
   (hub)      └─ direct ┘

A TCP connection a → b over the direct path and one walled → head over the hub path survive every change of a key. Then
a is removed while its agent is dead, so that only the others cut it off, then walled with all of it alive.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab.cluster import Cluster
from tests.lab.conversation import Conversation
from tests.lab.host import Host
from tests.lab.test_main_job import INTERFACE, wireguard_peers
from tests.lab.test_reliability import kill
from tests.lab.world import World

#: The time that a connection may be silent while a key changes: TCP's own retransmission, twice.
SILENCE_S = 4.0
#: A removed node is cut off everywhere within this time after the command returned.
CUT_OFF_S = 2.0


@dataclass
class Net:
    world: World
    cluster: Cluster
    talks: list[Conversation] = field(default_factory=list)

    def host(self, name: str) -> Host:
        return self.world.hosts[name]

    def path(self, me: str, other: str) -> tuple[str, str]:
        """Return kind and transport of the path in `status` on ``me``."""
        nodes = self.cluster.meshray(self.host(me), "status", check=False)["nodes"]
        path = next(node["path"] for node in nodes if node["name"] == other)
        return path["kind"], path["transport"]

    def rotate(self, on: str, *node: str) -> str:
        return str(self.host(on).run(["meshray", "node", "rotate-key", "--json", *node]).json()["public_key"])

    def reaches(self, me: str, address: str) -> bool:
        return not self.host(me).run(["ping", "-n", "-c1", "-W1", address], check=False).returncode

    def peers(self, me: str) -> set[str]:
        return {peer["public_key"] for peer in wireguard_peers(self.host(me))}


#: Sends ten echoes per second to each address and prints when the last answer of any came, by the monotonic clock.
_KNOCK = """
import re, subprocess, sys, time
pings = [subprocess.Popen(["ping", "-n", "-i0.1", "-W1", ip], stdout=subprocess.PIPE, text=True) for ip in sys.argv[1:]]
import selectors
waiting = selectors.DefaultSelector()
for ping in pings:
    waiting.register(ping.stdout, selectors.EVENT_READ, ping.args[-1])
while True:
    for key, _ in waiting.select():
        if "bytes from" in key.fileobj.readline():
            print(key.data, time.monotonic(), flush=True)
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("test-identity") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        head = world.host("head", wan, "192.88.99.10")
        nodes = [world.host(name, wan, f"192.88.99.{20 + n}") for n, name in enumerate(("a", "b"))]
        walled = world.host("walled", wan, "192.88.99.30")
        cluster = Cluster.without_ray(head, nodes)
        token = cluster.answers["head"]["token"]
        cluster.answers["walled"] = cluster.meshray(walled, "join", token, "--no-ray", "--transport", "wss")
        net = Net(world, cluster)
        world.wait_until(lambda: net.path("a", "b")[0] == "direct", 30, "a direct way a - b")
        assert net.path("walled", "head")[1] == "wss"
        yield net
        for talk in net.talks:
            talk.end()


def test_connections_outlast_the_change_of_every_key(net: Net) -> None:
    ip = net.cluster.ip
    net.talks = [
        Conversation(net.host("b"), net.host("a"), ip(net.host("b")), 7201),
        Conversation(net.host("head"), net.host("walled"), ip(net.host("head")), 7202),
        Conversation(net.host("b"), net.host("walled"), ip(net.host("b")), 7203),
    ]
    for on, node in (("a", ()), ("head", ("b",)), ("walled", ()), ("head", ())):
        begun, before = time.monotonic(), net.peers("head")
        key = net.rotate(on, *node)
        for talk in net.talks:
            talk.wait_until_it_goes_on(10)
            assert talk.longest_silence_s(begun) < SILENCE_S, f"{talk.name} while {node or on} changed its key"
        if (on, node) == ("head", ()):
            assert key in net.peers("a")
        else:
            assert key in net.peers("head")
            assert len(net.peers("head")) == len(before)
    net.world.wait_until(lambda: net.path("a", "b")[0] == "direct", 30, "the direct way a - b")


def last_answers(output: str) -> dict[str, float]:
    """Return when each address answered last, by the monotonic clock."""
    lines = [line.split() for line in output.split("\n")[:-1]]
    return {address: float(moment) for address, moment in lines}


def test_a_removed_node_is_cut_off_everywhere_although_its_own_machine_does_nothing(net: Net) -> None:
    a, head = net.host("a"), net.host("head")
    others = [net.cluster.ip(net.host(name)) for name in ("head", "b", "walled")]
    enrolment = json.loads(a.run(["cat", "/var/lib/meshray/node.json"]).stdout)
    own, key = net.cluster.ip(a), a.run(["wg", "show", INTERFACE, "public-key"]).stdout.strip()
    assert key in net.peers("head")
    knocks = a.popen([sys.executable, "-c", _KNOCK, *others], name="knock")
    a.wait_until(lambda: set(last_answers(knocks.output)) == set(others), 10, "answers of all")
    # Its agent is dead and its tunnel is not: nothing there stops anything.
    kill(a, "agent")
    head.run(["meshray", "node", "rm", "a", "--yes", "--json"])
    removed = time.monotonic()
    net.world.wait_until(lambda: time.monotonic() > removed + CUT_OFF_S + 1, 10, "the time to be cut off")
    late = {address: at - removed for address, at in last_answers(knocks.output).items() if at > removed + CUT_OFF_S}
    assert late == {}
    knocks.stop()
    # The device still has the key and every peer, and sends handshakes: no node answers. As an attacker would: the
    # hub's peer is added again by hand, so that its first handshake goes out at once.
    hub = next(peer for peer in wireguard_peers(a) if peer["endpoint"].startswith(str(head.address)))
    a.shell(
        f"wg set {INTERFACE} peer '{hub['public_key']}' remove; umask 077; echo '{hub['psk']}' > /tmp/psk;"
        f"wg set {INTERFACE} peer '{hub['public_key']}' preshared-key /tmp/psk allowed-ips 10.99.0.0/16"
        f" endpoint {hub['endpoint']} persistent-keepalive 1"
    )
    assert not net.reaches("a", others[0])
    assert {peer["handshake"] for peer in wireguard_peers(a) if peer["public_key"] == hub["public_key"]} == {"0"}
    for me in ("head", "b"):
        assert key not in net.peers(me)
        assert own not in "".join(peer["allowed_ips"] for peer in wireguard_peers(net.host(me)))
    output = a.shell(
        f"curl -sk -o /dev/null -w '%{{http_code}}' -X POST -d '{{}}'"
        f" -H 'Authorization: Bearer {enrolment['credential']}' https://{head.address}:{enrolment['mesh_port']}/v1/leave"
    )
    assert output.stdout.strip() == "401"


def test_a_removed_node_loses_its_websocket_and_its_token_and_its_address_rest(net: Net) -> None:
    walled, head, b = net.host("walled"), net.host("head"), net.host("b")
    own = net.cluster.ip(walled)
    knocks = b.popen([sys.executable, "-c", _KNOCK, own], name="knock")
    b.wait_until(lambda: own in last_answers(knocks.output), 10, "an answer")
    head.run(["meshray", "node", "rm", "walled", "--yes", "--json"])
    removed = time.monotonic()
    net.world.wait_until(lambda: time.monotonic() > removed + CUT_OFF_S + 1, 10, "the time to be cut off")
    assert last_answers(knocks.output)[own] <= removed + CUT_OFF_S
    knocks.stop()
    for command in ("status", "up"):  # Neither reports that its agent only has to be started.
        answer = net.cluster.meshray(walled, command, check=False)
        assert answer["error"]["code"] == "node_removed", answer
    made = head.run(["meshray", "token", "create", "--json"]).json()
    head.run(["meshray", "token", "revoke", "--json", made["id"]])
    walled.run(["meshray", "leave", "--yes"])
    refused = walled.run(["meshray", "join", "--json", "--no-ray", made["token"]], check=False)
    assert refused.returncode == 4
    assert refused.json()["error"]["code"] == "token_revoked"
    answer = net.cluster.meshray(walled, "join", net.cluster.answers["head"]["token"], "--no-ray")
    assert answer["node"]["ip"] not in {own, net.cluster.ip(net.host("a"))}
