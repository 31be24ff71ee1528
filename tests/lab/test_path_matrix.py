"""Nodes in every kind of network (see `places.py`): each pair takes the path that theory predicts.

One mesh of a hub and 19 nodes, all pairs at once. The oracles are `wg` (endpoints and allowed addresses of peers),
`ip`, and counters of the hub's forwarded packets; `meshray status` must agree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import TypeVar

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import Host
from tests.lab.places import NARROW_MTU, Internet, Place, dialled, every_place, expected
from tests.lab.test_main_job import INTERFACE, wireguard_peers
from tests.lab.waiting import DeadlineError
from tests.lab.world import World

T = TypeVar("T")

#: The time from the last join to the last direct path: 100 possible pairs, and 20 that fail, on two slow cores.
SETTLED_DEADLINE_S = 240
#: The time until the MTU of every path is known.
MEASURED_S = 60
#: IPv4 and UDP headers, and WireGuard's own.
WIREGUARD_BYTES = 60
#: The number of hosts that can be asked at once without delaying each other.
AT_ONCE = 4
#: Counts, by sender and receiver, the pings that the hub forwards from node to node.
WITNESS = f"""
table inet witness {{
    set forwarded {{
        type ipv4_addr . ipv4_addr
        flags dynamic
        size 1024
    }}
    chain forward {{
        type filter hook forward priority raw; policy accept;
        iifname "{INTERFACE}" oifname "{INTERFACE}" icmp type echo-request update @forwarded {{ ip saddr . ip daddr }}
    }}
}}
"""
#: Two programs: one sends this many bytes to every client, one counts them.
SEND = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
while True:
    caller, _ = server.accept()
    caller.sendall(bytes(int(sys.argv[2])))
    caller.close()
"""
FETCH = """
import socket, sys
received = 0
try:
    call = socket.create_connection((sys.argv[1], 7000), 8)
    while piece := call.recv(65536):
        received += len(piece)
except OSError as error:
    print(error, file=sys.stderr)
print(received)
"""
SOME_BYTES = 300_000


@dataclass(frozen=True)
class Mesh:
    """The mesh and the places of its nodes; the hub has no place."""

    world: World
    internet: Internet
    cluster: Cluster

    @property
    def hub(self) -> Host:
        return self.internet.hub

    @property
    def places(self) -> Mapping[str, Place]:
        return self.internet.places

    def ip(self, name: str) -> str:
        return self.cluster.ip(self.host(name))

    def host(self, name: str) -> Host:
        return self.hub if name == self.hub.name else self.places[name].host

    def on_each(self, ask: Callable[[str], T]) -> dict[str, T]:
        """Return the answers of all nodes, the hub included."""
        names = [self.hub.name, *self.places]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(names, pool.map(ask, names), strict=True))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with World("test-path-matrix") as world:
        internet = every_place(world)
        hosts = [place.host for place in internet.places.values()]
        yield Mesh(world, internet, Cluster.without_ray(internet.hub, hosts, init=["--port", "443"]))


def test_every_pair_can_communicate_right_after_enrolment(mesh: Mesh) -> None:
    def all_silent() -> list[str]:
        return [pair for pairs in mesh.on_each(partial(unanswered, mesh)).values() for pair in pairs]

    # Twenty agents that have just started on two cores: some seconds are the machine's.
    silent = all_silent()
    assert not silent or not all_silent(), silent


def test_each_pair_takes_the_predicted_path(mesh: Mesh) -> None:
    try:
        mesh.world.wait_until(lambda: not deviations(mesh), SETTLED_DEADLINE_S, "every pair to be as theory says")
    except DeadlineError:
        wrong = deviations(mesh)
        assert not wrong, "\n".join(wrong)


def test_status_is_correct(mesh: Mesh) -> None:
    def wrong() -> list[str]:
        answer = mesh.on_each(lambda name: mesh.cluster.meshray(mesh.host(name), "status", check=False))
        shown = {
            (me, node["name"]): (node["path"]["kind"], node["path"]["transport"])
            for me, status in answer.items()
            for node in status["nodes"]
            if node["name"] != me
        }
        theory = {pair: way_and_transport(mesh, *pair) for pair in permutations(answer, 2)}
        return [f"{pair}: {shown.get(pair)}, not {theory[pair]}" for pair in theory if shown.get(pair) != theory[pair]]

    # A survey of 380 pairs takes seconds, in which a busy machine may lose a probe: it must be right once.
    try:
        mesh.world.wait_until(lambda: not wrong(), 30, "status to say what is true")
    except DeadlineError:
        answer = wrong()
        assert not answer, "\n".join(answer)


def test_the_hub_forwards_only_for_pairs_that_need_it(mesh: Mesh) -> None:
    mesh.hub.run(["nft", "-f", "-"], stdin=WITNESS)
    needy = {
        (mesh.ip(one.name), mesh.ip(other.name))
        for one, other in permutations(mesh.places.values(), 2)
        if expected(one, other).way == "hub"
    }

    def seen() -> set[tuple[str, str]]:
        mesh.hub.run(["nft", "flush", "set", "inet", "witness", "forwarded"])
        assert not [pair for pairs in mesh.on_each(partial(unanswered, mesh)).values() for pair in pairs]
        listed = mesh.hub.run(["nft", "-j", "list", "set", "inet", "witness", "forwarded"]).json()
        elements = next(item["set"] for item in listed["nftables"] if "set" in item).get("elem", [])
        return {(sender, receiver) for sender, receiver in (element["concat"] for element in elements)}

    mesh.world.wait_until(lambda: seen() == needy, 40, "only those pairs at the hub that need it")


@pytest.mark.parametrize("name", ["narrow-1", "narrow-2"])
def test_large_transfers_pass_a_low_mtu_on_every_kind_of_path(mesh: Mesh, name: str) -> None:
    others = ["hub", "public-1", "easy-2", "symmetric-1", "proxied-1", *({"narrow-1", "narrow-2"} - {name})]
    senders = [
        mesh.host(sender).popen([sys.executable, "-c", SEND, mesh.ip(sender), str(SOME_BYTES)], name="send")
        for sender in (name, *others)
    ]
    try:
        for other in others:
            for receiver, sender in ((name, other), (other, name)):
                mesh.host(receiver).wait_until(
                    lambda r=receiver, s=sender: fetched(mesh, r, s) == SOME_BYTES,  # type: ignore[misc]
                    20,
                    f"{SOME_BYTES} bytes from {sender}",
                )
    finally:
        for process in senders:
            process.stop()


@pytest.mark.parametrize("name", ["narrow-1", "narrow-2"])
def test_the_route_to_a_node_on_a_narrow_line_has_its_mtu(mesh: Mesh, name: str) -> None:
    for other in ("hub", "public-1", "easy-2"):
        for source, target in ((name, other), (other, name)):
            # A path through the hub may have been measured before: its second leg carries larger packets in fragments.
            fits = partial(has_mtu_for, mesh, source, target, NARROW_MTU - WIREGUARD_BYTES)
            mesh.world.wait_until(fits, MEASURED_S, f"the mtu of the route {source} → {target}")


def has_mtu_for(mesh: Mesh, source: str, target: str, largest: int) -> bool:
    return 1000 < route_mtu(mesh, source, target) <= largest


def route_mtu(mesh: Mesh, source: str, target: str) -> int:
    """Return the route's MTU; 0 if it has none of its own."""
    (route,) = mesh.host(source).run(["ip", "-json", "route", "get", mesh.ip(target)]).json()
    return next((int(metric["mtu"]) for metric in route.get("metrics", []) if "mtu" in metric), 0)


def way_and_transport(mesh: Mesh, me: str, other: str) -> tuple[str, str]:
    """Return what `status` of one node must report for its path to another, with its own first leg's transport."""
    if mesh.hub.name in (me, other):
        return "direct", mesh.places[other if me == mesh.hub.name else me].transport
    theory = expected(mesh.places[me], mesh.places[other])
    return theory.way, "udp" if theory.way == "direct" else mesh.places[me].transport


def deviations(mesh: Mesh) -> list[str]:
    """Return the pairs that deviate from theory, by each node's `wg`."""
    peers = mesh.on_each(lambda name: wireguard_peers(mesh.host(name)))
    keys = mesh.on_each(lambda name: mesh.host(name).run(["wg", "show", INTERFACE, "public-key"]).stdout.strip())
    wrong = []
    for me, other in permutations(mesh.places, 2):
        theory = expected(mesh.places[me], mesh.places[other])
        calls = [
            peer["endpoint"].rpartition(":")[0]
            for peer in peers[me]
            if peer["public_key"] == keys[other] and f"{mesh.ip(other)}/32" in peer["allowed_ips"].split(",")
        ]
        if calls != ([dialled(mesh.places[me], mesh.places[other])] if theory.way == "direct" else []):
            wrong.append(f"{me} → {other}: {calls or 'through the hub'}, but {theory.way}: {theory.reason}")
    for name, place in mesh.places.items():
        seen = [
            peer["endpoint"].rpartition(":")[0] for peer in peers[mesh.hub.name] if peer["public_key"] == keys[name]
        ]
        if seen != [place.outside if place.has_udp else "127.0.0.1"]:
            wrong.append(f"{name} comes to the hub from {seen}, and its transport should be {place.transport}")
    return wrong


def unanswered(mesh: Mesh, name: str) -> list[str]:
    """Return the others that do not answer the node's pings, three times over."""
    others = [other for other in (mesh.hub.name, *mesh.places) if other != name]
    pings = [f"(ping -nq -c3 -i0.4 -W3 {mesh.ip(other)} >/dev/null || echo {other}) &" for other in others]
    return [f"{name} → {other}" for other in mesh.host(name).shell("\n".join([*pings, "wait"])).stdout.split()]


def fetched(mesh: Mesh, receiver: str, sender: str) -> int:
    """Return how many bytes come before the connection ends, or hangs."""
    return int(mesh.host(receiver).run([sys.executable, "-c", FETCH, mesh.ip(sender)]).stdout)
