"""The head gets another public address, like a machine in a cloud that is stopped and started.

                switch wan 203.0.113.0/24
     ┌─────────────────┬┴───────────────┬──────────────────┐
   cloud             open             nat               outsider, late
203.0.113.50      203.0.113.21    203.0.113.31        203.0.113.70, .22
 → 203.0.113.60                         │
     │ 10.0.0.0/24                    inner
   head 10.0.0.5                  192.168.7.10

The cloud's router maps its address to the head, which does not see it; the cloud reports it at 169.254.169.254.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from meshray.model.token import Token
from tests.lab.cluster import Cluster, enrolment
from tests.lab.host import Host
from tests.lab.trouble import forget
from tests.lab.world import Router, World

PORT = 51888
OLD, NEW, NEWER = "203.0.113.50", "203.0.113.60", "203.0.113.61"
#: The time from the change to tokens with the new address: the cloud is asked every 30 s.
NOTICED_S = 40
#: The time until a running worker has followed: its connection is found dead within 15 s, and the head's map follows
#: within 30.
FOLLOWED_S = 90

ONE_TO_ONE = f"""
table ip one_to_one {{
    chain prerouting {{
        type nat hook prerouting priority -110;
        iifname "wan" fib daddr type local meta l4proto {{ tcp, udp }} th dport {PORT} dnat to 10.0.0.5
    }}
}}
insert rule inet router forward ct status dnat accept
"""

METADATA = """
import http.server, pathlib

class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/latest/meta-data/public-ipv4"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(pathlib.Path("/tmp/public-ipv4").read_bytes() if known else b"")

    def log_message(self, *words):
        pass

http.server.HTTPServer(("169.254.169.254", 80), Tell).serve_forever()
"""


@dataclass
class Net:
    world: World
    head: Host
    cloud: Router
    cluster: Cluster = field(init=False)

    def move(self, address: str, *, in_metadata: bool = True) -> None:
        """Replace the head's address in the cloud; ``in_metadata``: the metadata report it."""
        if in_metadata:
            self.set_public_address(address)
        lines = ["address flush dev wan", f"address add {address}/24 dev wan"]
        self.cloud.host.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")
        forget(self.cloud)

    def set_public_address(self, address: str) -> None:
        self.head.path("/tmp/public-ipv4").write_text(address)

    def token(self) -> tuple[str, list[str]]:
        """Return a new token, and the hosts in it."""
        text = self.head.run(["meshray", "token", "create"]).stdout.strip()
        return text, [endpoint.host for endpoint in Token.parse(text).coordinators]

    def names(self, address: str) -> bool:
        return address in self.token()[1]

    def is_connected(self, host: Host) -> bool:
        status = self.cluster.meshray(host, "status", check=False)
        return bool(status["coordinator"]["reachable"]) and host.can_reach(self.cluster.ip(self.head))

    def known(self, host: Host) -> list[str]:
        """Return the node's endpoints of the coordinator."""
        return [str(item) for item in enrolment(host)["coordinators"]]


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("head-moves") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        cloud = world.router("cloud", wan, OLD, lan="10.0.0.0/24")
        cloud.host.run(["nft", "-f", "-"], stdin=ONE_TO_ONE)
        head = world.host("head", cloud.lan, "10.0.0.5")
        nat = world.router("nat", wan, "203.0.113.31", lan="192.168.7.0/24", kind="symmetric")
        for name, address in (("open", "203.0.113.21"), ("late", "203.0.113.22"), ("outsider", "203.0.113.70")):
            world.host(name, wan, address)
        world.host("inner", nat.lan, "192.168.7.10")
        net = Net(world, head, cloud)
        net.set_public_address(OLD)
        head.run(["ip", "address", "add", "169.254.169.254/32", "dev", "lo"])
        head.popen([sys.executable, "-c", METADATA], name="metadata")

        def listens() -> bool:
            return "169.254.169.254" in head.run(["ss", "-Hltn"]).stdout

        world.wait_until(listens, 10, "the metadata service")
        workers = [world.hosts["open"], world.hosts["inner"]]
        net.cluster = Cluster.without_ray(head, workers)
        yield net


def test_the_first_token_and_later_ones_name_the_same_addresses(net: Net) -> None:
    first = [endpoint.host for endpoint in Token.parse(net.cluster.answers["head"]["token"]).coordinators]
    assert first == [OLD, "10.0.0.5"]
    assert net.token()[1] == first


def test_a_new_address_in_the_cloud_is_followed(net: Net) -> None:
    running, stopped, late = (net.world.hosts[name] for name in ("open", "inner", "late"))
    before = net.cluster.meshray(stopped, "status")
    net.cluster.meshray(stopped, "down")
    net.move(NEW)
    net.world.wait_until(
        lambda: net.token()[1] == [NEW, "10.0.0.5"], NOTICED_S, "a token with the new address and without the old one"
    )
    token, _ = net.token()
    net.cluster.answers["late"] = net.cluster.meshray(late, "join", token, "--no-ray")
    assert late.can_reach(net.cluster.ip(net.head), deadline_s=5)
    # The head reaches this one, so it learns the new address through the tunnel.
    net.world.wait_until(
        lambda: net.is_connected(running) and net.known(running)[0] == f"{NEW}:{PORT}", FOLLOWED_S, "the worker"
    )
    # This one knows only the old address: one command, same name and address.
    answer = net.cluster.meshray(stopped, "up", "--coordinator", f"{NEW}:{PORT}")
    assert answer["node"] == {"name": before["self"], "ip": net.cluster.ip(stopped)}
    assert net.is_connected(stopped)
    assert net.known(stopped)[0] == f"{NEW}:{PORT}"
    assert stopped.can_reach(net.cluster.ip(late), deadline_s=5)


def test_a_public_address_is_learnt_from_a_worker_without_cloud_metadata(net: Net) -> None:
    """The worker runs behind a NAT that drops new connections. Its user gives it the address, it informs the head."""
    net.move(NEWER, in_metadata=False)
    inner, late = net.world.hosts["inner"], net.world.hosts["late"]
    refused = net.cluster.meshray(inner, "up", "--coordinator", "203.0.113.99:51888", check=False)
    assert refused["error"]["code"] == "coordinator_unreachable"
    told = net.cluster.meshray(inner, "up", "--coordinator", NEWER)
    assert told["node"]["ip"] == net.cluster.ip(inner)
    net.world.wait_until(lambda: net.is_connected(inner), 45, "the worker")
    net.world.wait_until(lambda: net.names(NEWER), 10, "the head to hear of it")
    net.cluster.meshray(late, "leave", "--yes", check=False)
    net.cluster.answers["late"] = net.cluster.meshray(late, "join", net.token()[0], "--no-ray")
    assert net.is_connected(late)
    # Back again: all of them know that address.
    net.move(NEW)
    for name in ("open", "inner", "late"):
        net.world.wait_until(
            lambda host=net.world.hosts[name]: (  # type: ignore[misc]
                net.is_connected(host) and net.known(host)[0] == f"{NEW}:{PORT}"
            ),
            FOLLOWED_S,
            name,
        )


def test_a_user_adds_an_address_to_a_running_head(net: Net) -> None:
    answer = net.cluster.meshray(net.head, "init", "--advertise", "head.example.org", "--advertise", "203.0.113.77:443")
    assert answer["already"] is True
    assert answer["token"] is None
    assert answer["endpoints"][:2] == ["head.example.org:51888", "203.0.113.77:443"]
    assert net.token()[1][:2] == ["head.example.org", "203.0.113.77"]
    net.world.wait_until(
        lambda: "203.0.113.77:443" in net.known(net.world.hosts["late"]), 5, "the worker to hear of it"
    )
    net.cluster.meshray(net.head, "down")
    net.cluster.meshray(net.head, "up")
    assert net.token()[1][:2] == ["head.example.org", "203.0.113.77"]
    refused = net.cluster.meshray(net.head, "init", "--advertise", "a.example.org", "--hub-only", check=False)
    assert refused["error"]["code"] == "already_enrolled"


def test_another_mesh_at_that_address_changes_nothing(net: Net) -> None:
    outsider, inner = net.world.hosts["outsider"], net.world.hosts["inner"]
    net.cluster.meshray(outsider, "init", "--no-ray")
    before = net.known(inner)
    refused = net.cluster.meshray(inner, "up", "--coordinator", "203.0.113.70", check=False)
    assert refused["error"]["code"] == "other_coordinator"
    assert net.known(inner) == before
    on_head = net.cluster.meshray(net.head, "up", "--coordinator", "203.0.113.70", check=False)
    assert on_head["error"]["code"] == "hosts_coordinator"
    assert "init --advertise 203.0.113.70" in on_head["error"]["hint"]
