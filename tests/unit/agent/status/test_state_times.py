"""The time since which a node is in its current state, from the map's changes."""

from __future__ import annotations

from dataclasses import replace

from meshray.agent.status.state_times import StateTimes
from meshray.agent.status.status_builder import build_status
from meshray.model.meshmap import MeshMap
from meshray.model.node import SILENT, Node
from meshray.model.ray_state import RayState
from meshray.protocol.codec import to_json
from tests.unit.agent.sample import HEAD_NODE, MAP, WORKER_A, WORKER_B
from tests.unit.agent.status.test_status_builder import RAY, snapshot


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def with_nodes(*nodes: Node) -> MeshMap:
    return replace(MAP, nodes={node.id: node for node in nodes})


def test_a_change_has_its_time_and_what_was_there_before_the_agent_has_none() -> None:
    clock = Clock()
    state_times = StateTimes(clock)
    before = with_nodes(HEAD_NODE, WORKER_A)
    state_times.record(before, before)
    assert state_times.since(WORKER_A) is None
    clock.now, now = 110.0, with_nodes(HEAD_NODE, replace(WORKER_A, online=False), WORKER_B)
    state_times.record(before, now)
    assert (state_times.since(HEAD_NODE), state_times.since(WORKER_A), state_times.since(WORKER_B)) == (
        None,
        110.0,
        110.0,
    )
    clock.now = 120.0
    state_times.record(now, now)
    state_times.record(now, with_nodes(HEAD_NODE, replace(WORKER_A, online=False, silence=SILENT)))
    assert (state_times.since(WORKER_A), state_times.since(WORKER_B)) == (120.0, None)


def test_since_is_the_start_of_the_raylet_or_the_last_sign_of_a_silent_node() -> None:
    ray = {**RAY, WORKER_A.ip: RayState(True, {"CPU": 1.0}, {"CPU": 0.5}, 77.0)}
    seen = replace(snapshot(HEAD_NODE, ray=ray), wall_clock=1000.0, changed=lambda node: 5.0)
    by_name = {node.name: node for node in build_status(seen).nodes}
    assert (by_name["gpu-a"].since, by_name["gpu-b"].since) == (77.0, 5.0)
    assert to_json(by_name["gpu-a"].ray) == {
        "alive": True,
        "resources": {"CPU": 1.0},
        "used": {"CPU": 0.5},
        "last_known": None,
        "ports": by_name["gpu-a"].ray.ports,
    }
    silent = replace(seen, silent_s=lambda node: 24.0 if node.id == WORKER_A.id else None)
    assert {node.name: node.since for node in build_status(silent).nodes}["gpu-a"] == 976.0
