"""Trouble (see `trouble.py`) has the described effect, proved with plain sockets and no overlay.

             switch wan 192.88.99.0/24
    ┌──────────────┼───────────────┐
  server          nat          other-nat
.10 and .11     .31 (easy)       .32
                   │
                  home 192.168.1.10
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.lab.conversation import Conversation
from tests.lab.host import Host
from tests.lab.test_world import senders_seen
from tests.lab.trouble import away, forget, readdress, rebind, reboot, silenced
from tests.lab.world import Router, World

TROUBLE_S = 2


@dataclass(frozen=True)
class Net:
    world: World
    server: Host
    other: Host
    nat: Router
    other_nat: Router
    home: Host


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("test-trouble") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        nat = world.router("nat", wan, "192.88.99.31", lan="192.168.1.0/24")
        other_nat = world.router("other-nat", wan, "192.88.99.32", lan="192.168.2.0/24")
        server, other = (world.host(f"server-{n}", wan, f"192.88.99.1{n}") for n in (0, 1))
        yield Net(world, server, other, nat, other_nat, world.host("home", nat.lan, "192.168.1.10"))


@pytest.fixture
def talk(net: Net) -> Iterator[Conversation]:
    talk = Conversation(net.server, net.home, str(net.server.address))
    yield talk
    talk.end()


def one_way_silence(net: Net) -> None:
    with silenced(net.nat.host, str(net.server.address)):
        time.sleep(TROUBLE_S)


@pytest.mark.parametrize(
    "trouble",
    [one_way_silence, lambda net: away(net.nat, TROUBLE_S), lambda net: reboot(net.nat, TROUBLE_S)],
    ids=["silence", "away", "reboot"],
)
def test_a_connection_pauses_during_the_outage(net: Net, talk: Conversation, trouble: Callable[[Net], None]) -> None:
    mark = time.monotonic()
    trouble(net)
    assert talk.longest_silence_s(since=mark) > TROUBLE_S * 0.9
    talk.wait_until_it_goes_on(10)


def test_silence_in_one_direction_leaves_the_other(net: Net) -> None:
    listen = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 7200)); s.settimeout({}); s.recv(9)"
    call = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'hi', ('{net.server.address}', 7200))"
    for silent, arrives in ((net.home, True), (net.server, False)):
        with silenced(silent, str(net.server.address if silent is net.home else net.nat.host.address)):
            listener = net.server.popen([sys.executable, "-c", listen.format(3)])
            net.server.wait_until(lambda: ":7200" in net.server.run(["ss", "-uln"]).stdout, 5, "the listener")
            net.home.run([sys.executable, "-c", call])
            assert (listener.wait(5) == 0) is arrives


def test_a_router_that_loses_its_mappings_reuses_the_same_port(net: Net, talk: Conversation) -> None:
    forget(net.nat)
    talk.wait_until_it_goes_on(10)


def test_after_a_rebind_the_port_is_another_one_and_the_same_for_all(net: Net) -> None:
    assert senders_seen([net.server, net.other], net.home) == ["192.88.99.31 5000"] * 2
    rebind(net.nat, net.home, 5000, 40001)
    assert senders_seen([net.server, net.other], net.home) == ["192.88.99.31 40001"] * 2


def test_a_host_gets_another_address_and_another_network(net: Net) -> None:
    readdress(net.home, net.nat, "192.168.1.77")
    assert [a["local"] for a in _addresses(net.home)] == ["192.168.1.77"]
    assert net.home.can_reach(net.server.address)
    net.world.unplug(net.home, "eth0")
    assert not net.home.can_reach(net.server.address)
    net.world.connect(net.home, net.other_nat.lan, "192.168.2.10", interface="eth0")
    assert senders_seen([net.server], net.home) == ["192.88.99.32 5000"]


def _addresses(host: Host) -> list[dict[str, str]]:
    (link,) = host.run(["ip", "-json", "-4", "address", "show", "eth0"]).json()
    return list(link["addr_info"])
