"""A mapping that changes alone is distinguished from a node that changes."""

from __future__ import annotations

from dataclasses import replace

from meshray.agent.paths.rebinds import Rebinds
from meshray.model.address import Endpoint
from meshray.model.node import Node
from meshray.wireguard.config import DeviceState, PeerConfig, PeerState
from tests.unit.agent.sample import KEYS, WORKER_A

INNER = (Endpoint("192.168.7.10", 51888),)
AT_HOME = replace(WORKER_A, endpoints=INNER)


def device(*observed: str) -> DeviceState:
    peers = [PeerConfig(KEYS[1].public(), frozenset(), endpoint=Endpoint.parse(at)) for at in observed]
    return DeviceState(None, 51888, (), 1420, True, {peer.public_key: PeerState(peer) for peer in peers})


def changes(*looks: tuple[Node, str]) -> tuple[float, ...]:
    rebinds = Rebinds()
    for second, (node, at) in enumerate(looks):
        rebinds.observe([node], device(at), float(second))
    return rebinds.ages(float(len(looks))).get("gpu-a", ())


def test_another_port_of_the_same_router_is_a_rebind() -> None:
    assert changes((AT_HOME, "198.51.100.7:1000"), (AT_HOME, "198.51.100.7:1000")) == ()
    assert changes((AT_HOME, "198.51.100.7:1000"), (AT_HOME, "198.51.100.7:1001")) == (1.0,)


def test_another_network_another_port_of_its_own_and_the_relay_are_none() -> None:
    restarted = replace(AT_HOME, endpoints=(Endpoint("192.168.7.10", 40000),))
    assert changes((AT_HOME, "198.51.100.7:1000"), (AT_HOME, "203.0.113.9:1001")) == ()
    assert changes((AT_HOME, "198.51.100.7:1000"), (restarted, "198.51.100.7:1001")) == ()
    assert changes((AT_HOME, "127.0.0.1:1000"), (AT_HOME, "127.0.0.1:1001")) == ()


def test_a_node_that_left_is_forgotten() -> None:
    rebinds = Rebinds()
    rebinds.observe([AT_HOME], device("198.51.100.7:1000"), 0.0)
    assert rebinds.ages(1.0) == {"gpu-a": ()}
    rebinds.observe([], device(), 2.0)
    assert rebinds.ages(3.0) == {}
