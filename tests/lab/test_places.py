"""Every kind of place (see `places.py`) passes exactly what its name implies, proved with plain sockets.

The last test verifies the theory: every pair of places sends to each other at the same moment, as WireGuard does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from tests.lab.host import HostProcess
from tests.lab.places import NARROW_MTU, Internet, Place, dialled, every_place, expected
from tests.lab.proxy import PASSWORD, PORT, USER
from tests.lab.world import World

#: Reports to every sender of a datagram its address as seen from here; sends as many bytes as a client requests.
HUB = """
import socket, threading
def datagrams():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", 7000))
    while True:
        _, sender = server.recvfrom(2000)
        server.sendto(f"{sender[0]} {sender[1]}".encode(), sender)
def answer(caller):
    caller.sendall(bytes(int(caller.makefile().readline())))
    caller.close()
def calls(port, largest_segment=None):
    server = socket.create_server(("0.0.0.0", port))
    if largest_segment:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, largest_segment)
    while True:
        threading.Thread(target=answer, args=[server.accept()[0]], daemon=True).start()
for target, arguments in ((datagrams, []), (calls, [443]), (calls, [7000]), (calls, [7001, 1200])):
    threading.Thread(target=target, args=arguments).start()
"""
#: Prints how many of the requested bytes arrived within a time; through a proxy if credentials are given.
FETCH = """
import base64, socket, sys, time
address, port, size, patience, proxy, user = sys.argv[1:]
end = time.monotonic() + float(patience)
received = 0
try:
    call = socket.create_connection(proxy.split(":") if proxy else (address, port), float(patience))
    if proxy:
        secret = base64.b64encode(user.encode()).decode()
        who = f"Proxy-Authorization: Basic {secret}\\r\\n" if user else ""
        call.sendall(f"CONNECT {address}:{port} HTTP/1.1\\r\\n{who}\\r\\n".encode())
        answer = b""
        while not answer.endswith(b"\\r\\n\\r\\n"):
            answer += call.recv(1) or sys.exit("closed: " + repr(answer))
        status = answer.split()[1].decode()
        if status != "200":
            sys.exit(f"status {status}")
    call.sendall(f"{size}\\n".encode())
    while received < int(size) and time.monotonic() < end:
        call.settimeout(end - time.monotonic())
        piece = call.recv(65536)
        if not piece:
            break
        received += len(piece)
except OSError as error:
    print(error, file=sys.stderr)
print(received)
"""
#: One socket for all, as in WireGuard: asks the hub for its own address, waits for the list of peers and the moment,
#: then sends to them all for some seconds, answers every sender, sends back to the source from then on, and prints
#: which answers came.
CALL_ALL = """
import json, pathlib, socket, sys, time
name, hub = sys.argv[1:]
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("0.0.0.0", 0))
own.settimeout(0.2)
def receive():
    try:
        return own.recvfrom(100)
    except OSError:
        return b"", None
seen = None
for _ in range(8):
    own.sendto(b"?", (hub, 7000))
    answer, _ = receive()
    if answer:
        seen = answer.decode().split()
        break
print(json.dumps({"seen": seen, "port": own.getsockname()[1]}), flush=True)
to_call = pathlib.Path("/tmp/to-call.json")
while not to_call.exists():
    time.sleep(0.05)
task = json.loads(to_call.read_text())
answered = set()
while time.time() < task["end"]:
    if time.time() >= task["start"]:
        for other, (address, port) in task["others"].items():
            if other not in answered:
                own.sendto(f"call {name}".encode(), (address, port))
    pause = time.time() + 0.3
    while time.time() < pause:
        data, sender = receive()
        word, _, other = data.decode().partition(" ")
        if word == "call":
            own.sendto(f"answer {name}".encode(), sender)
            task["others"][other] = sender
        elif word == "answer":
            answered.add(other)
print(json.dumps(sorted(answered)), flush=True)
"""
SOME_BYTES = 300_000
CALLING_S = 4


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    with World("test-places") as world:
        internet = every_place(world)
        internet.hub.popen([sys.executable, "-c", HUB], name="hub")
        internet.hub.wait_until(lambda: ":7000" in internet.hub.run(["ss", "-tln"]).stdout, 10, "the hub's program")
        yield internet


def fetched(internet: Internet, name: str, port: int, *, size: int = 5, proxy: str = "", user: str = "") -> int:
    """Return how many bytes the place gets from the hub within a time."""
    words = [internet.hub.address, str(port), str(size), "2", proxy, user]
    return int(internet.places[name].host.run([sys.executable, "-c", FETCH, *map(str, words)]).stdout)


@pytest.mark.parametrize("name", ["easy-1", "no-udp-1", "double-2", "symmetric-2", "dropping-1"])
def test_most_networks_allow_any_outbound_port(internet: Internet, name: str) -> None:
    assert fetched(internet, name, 7000) == 5
    assert internet.places[name].host.can_reach(internet.hub.address)


def test_behind_only_443_nothing_else_goes_out(internet: Internet) -> None:
    assert fetched(internet, "only-443-1", 443) == 5
    assert fetched(internet, "only-443-1", 7000) == 0
    assert not internet.places["only-443-1"].host.can_reach(internet.hub.address)


def test_behind_the_proxy_nothing_goes_out_but_through_it(internet: Internet) -> None:
    assert fetched(internet, "proxied-1", 443) == 0
    assert not internet.places["proxied-1"].host.can_reach(internet.hub.address)
    through = f"192.168.1.1:{PORT}"
    assert fetched(internet, "proxied-1", 443, proxy=through, user=f"{USER}:{PASSWORD}") == 5


@pytest.mark.parametrize(
    ("port", "user", "status"),
    [(443, "", "407"), (443, f"{USER}:wrong", "401"), (7000, f"{USER}:{PASSWORD}", "403")],
    ids=["nobody", "wrong password", "wrong port"],
)
def test_the_proxy_refuses_unknown_clients_and_other_ports(
    internet: Internet, port: int, user: str, status: str
) -> None:
    words = [str(internet.hub.address), str(port), "5", "2", f"192.168.1.1:{PORT}", user]
    tried = internet.places["proxied-2"].host.run([sys.executable, "-c", FETCH, *words], check=False)
    assert tried.stderr == f"status {status}\n", tried


@pytest.mark.parametrize("name", ["narrow-1", "narrow-2"])
def test_a_link_with_a_low_mtu_passes_no_larger_packets(internet: Internet, name: str) -> None:
    host = internet.places[name].host
    for size, passes in ((NARROW_MTU, True), (NARROW_MTU + 1, False)):
        ping = ["ping", "-n", "-c1", "-W1", "-Mdo", f"-s{size - 28}", str(internet.hub.address)]
        pinged = host.run(ping, check=False)
        assert (pinged.returncode == 0) is passes
        assert ("Frag needed" in pinged.stdout or "too long" in pinged.stdout) is (not passes and name == "narrow-1"), (
            pinged
        )


def test_large_transfers_pass_a_low_mtu_only_with_icmp(internet: Internet) -> None:
    assert fetched(internet, "narrow-1", 7000, size=SOME_BYTES) == SOME_BYTES
    assert fetched(internet, "narrow-2", 7000, size=1000) == 1000
    assert fetched(internet, "narrow-2", 7000, size=SOME_BYTES) < SOME_BYTES
    # The other remedy: a server that itself keeps its segments small.
    assert fetched(internet, "narrow-2", 7001, size=SOME_BYTES) == SOME_BYTES


def test_exactly_the_predicted_pairs_can_connect(internet: Internet) -> None:
    callers = {
        name: place.host.popen([sys.executable, "-c", CALL_ALL, name, str(internet.hub.address)], name="call-all")
        for name, place in internet.places.items()
    }
    sockets = {name: _line(internet.places[name], caller, 0) for name, caller in callers.items()}
    assert {name for name in sockets if sockets[name]["seen"]} == {
        n for n, place in internet.places.items() if place.has_udp
    }
    start = time.time() + 1
    for name, place in internet.places.items():
        others = {
            other: [dialled(place, internet.places[other]), _port(place, internet.places[other], sockets[other])]
            for other in internet.places
            if other != name and sockets[other]["seen"]
        }
        task = {"start": start, "end": start + CALLING_S, "others": others}
        place.host.path("/tmp/to-call.tmp").write_text(json.dumps(task))
        place.host.path("/tmp/to-call.tmp").rename(place.host.path("/tmp/to-call.json"))
    received = {name: set(_line(internet.places[name], caller, 1)) for name, caller in callers.items()}
    wrong = [
        f"{one} - {other}: {one in received[other]}, {other in received[one]}, but {theory.way}: {theory.reason}"
        for one, other in combinations(internet.places, 2)
        for theory in [expected(internet.places[one], internet.places[other])]
        if not (one in received[other]) == (other in received[one]) == (theory.way == "direct")
    ]
    assert not wrong, "\n".join(wrong)


def _line(place: Place, caller: HostProcess, number: int) -> Any:
    """Return what the place's program printed on this line."""
    place.host.wait_until(lambda: caller.output.count("\n") > number, 20, f"line {number} of the program")
    return json.loads(caller.output.splitlines()[number])


def _port(me: Place, other: Place, socket_of_other: dict[str, Any]) -> int:
    return int(socket_of_other["port"] if me.site == other.site else socket_of_other["seen"][1])
