"""The interval of the device's checks after a change of the map."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.agent.agent import Agent
from meshray.agent.dependencies import Dependencies
from meshray.agent.device.reconciler import EXPECT_S, EXPECTING_PER_PEER_S, EXPECTING_S, RECONCILE_S, WATCHFUL_S
from meshray.agent.state import NodeState
from meshray.home import Home
from meshray.model.address import Endpoint
from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, Node
from meshray.wireguard.config import DeviceState, PeerConfig, PeerState
from tests.fake_device import FakeDevice
from tests.unit.agent.sample import HEAD_NODE, KEYS, MAP, WORKER_A, WORKER_B, enrolment

ENDPOINT = Endpoint("198.51.100.7", 51888)
NEW = replace(WORKER_B, id="n9")


class Clock:
    """Monotonic seconds that pass only when a test advances them."""

    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("meshray.agent.device.reconciler.time.monotonic", lambda: clock.now)
    return clock


def new_key() -> PublicKey:
    return PublicKey(os.urandom(32))


def with_node(node: Node) -> MeshMap:
    return replace(MAP, revision=MAP.revision + 1, nodes={**MAP.nodes, node.id: node})


def in_steady_state(folder: Path, me: Node, clock: Clock) -> Agent:
    """Return an agent that received its first map from the coordinator long ago."""
    home = Home(folder, folder)
    agent = Agent(NodeState(home, enrolment(me), MAP), KEYS[int(me.id[1:])], Dependencies(FakeDevice()))
    agent.state.overlay_up.set()
    agent.reconciler.map_changed(agent.state.take_map(MAP))
    assert agent.reconciler.interval_s == EXPECTING_S
    clock.now += EXPECT_S
    return agent


@pytest.mark.parametrize(
    "changed",
    [NEW, replace(WORKER_B, endpoints=(ENDPOINT,)), replace(WORKER_B, roles=frozenset({HUB}))],
    ids=["new", "elsewhere", "new hub"],
)
def test_a_hub_looks_often_for_a_node_that_it_expects(tmp_path: Path, clock: Clock, changed: Node) -> None:
    hub = in_steady_state(tmp_path, HEAD_NODE, clock)
    assert hub.reconciler.interval_s == RECONCILE_S
    hub.reconciler.map_changed(hub.state.take_map(with_node(changed)))
    assert hub.reconciler.interval_s == EXPECTING_S
    clock.now += EXPECT_S
    assert hub.reconciler.interval_s == RECONCILE_S


def test_a_hub_looks_less_often_the_longer_it_waits(tmp_path: Path, clock: Clock) -> None:
    hub = in_steady_state(tmp_path, HEAD_NODE, clock)
    hub.reconciler.map_changed(hub.state.take_map(with_node(NEW)))
    began, checks = clock.now, 0
    while hub.reconciler.interval_s != RECONCILE_S:
        checks += 1
        assert clock.now - began > 1 or hub.reconciler.interval_s <= EXPECTING_S * 1.01
        clock.now += hub.reconciler.interval_s
    assert EXPECT_S <= clock.now - began < EXPECT_S + 1
    assert checks < 35


def test_a_hub_with_many_peers_looks_less_often(tmp_path: Path, clock: Clock) -> None:
    hub = in_steady_state(tmp_path, HEAD_NODE, clock)
    peers = {key: PeerState(PeerConfig(key, frozenset())) for key in (new_key() for _ in range(1000))}
    hub.state.device = DeviceState(None, 51888, (), 1420, True, peers, {})
    hub.reconciler.map_changed(hub.state.take_map(with_node(NEW)))
    assert hub.reconciler.interval_s == pytest.approx(1000 * EXPECTING_PER_PEER_S)


@pytest.mark.parametrize(
    "changed",
    [
        replace(WORKER_B, drained=True),
        replace(WORKER_B, seen=ENDPOINT),
        replace(WORKER_B, online=False),
        replace(HEAD_NODE, ray_instance="i1"),
    ],
    ids=["drained", "seen", "offline", "own Ray"],
)
def test_a_hub_does_not_look_often_for_other_changes(tmp_path: Path, clock: Clock, changed: Node) -> None:
    hub = in_steady_state(tmp_path, HEAD_NODE, clock)
    hub.reconciler.map_changed(hub.state.take_map(with_node(changed)))
    assert hub.reconciler.interval_s == RECONCILE_S


def test_a_hub_looks_often_for_a_node_that_comes_back(tmp_path: Path, clock: Clock) -> None:
    hub = in_steady_state(tmp_path, HEAD_NODE, clock)
    for online, interval_s in ((False, RECONCILE_S), (True, EXPECTING_S)):
        hub.reconciler.map_changed(hub.state.take_map(with_node(replace(WORKER_B, online=online))))
        assert hub.reconciler.interval_s == interval_s


def test_a_worker_looks_often_for_hubs_alone(tmp_path: Path, clock: Clock) -> None:
    worker = in_steady_state(tmp_path, WORKER_A, clock)
    worker.reconciler.map_changed(worker.state.take_map(with_node(NEW)))
    assert worker.reconciler.interval_s == WATCHFUL_S, "its only hub is not heard"
    worker.reconciler.map_changed(worker.state.take_map(with_node(replace(NEW, roles=frozenset({HUB})))))
    assert worker.reconciler.interval_s == EXPECTING_S
