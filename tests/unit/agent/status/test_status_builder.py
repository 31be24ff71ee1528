"""The status of the mesh: paths, Ray, totals and problems."""

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from meshray.agent.device.desired_device import PairKeys, desired_device
from meshray.agent.paths.samples import Measured
from meshray.agent.ray.last_resources import LastResources
from meshray.agent.status.status_builder import Snapshot, build_status
from meshray.doctor import verdicts
from meshray.doctor.device.facts import MISSING, UP, DeviceFacts
from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, HostFacts, NodeFacts
from meshray.doctor.report import FAIL, OK
from meshray.linux.clock import BootSeconds
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB_FORWARDS, ONE_IDENTITY, Node
from meshray.model.ray_state import RayState
from meshray.protocol.codec import to_json
from meshray.wireguard.config import DeviceState, PeerState
from tests.unit.agent.sample import HEAD_NODE, HUB_ENDPOINT, KEYS, MAP, SECRET, WORKER_A, WORKER_B

NOW = BootSeconds(10_000.0)
RAY = {node.ip: RayState(True, {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}) for node in MAP.nodes.values()}


def snapshot(
    me: Node,
    *,
    handshake: float | None = NOW - 5,
    ray: Mapping[IPv4Address, RayState] | None = RAY,
    samples: tuple[float | None, ...] = (2.0, 1.0, 30.0),
    reachable: bool = True,
) -> Snapshot:
    keys = PairKeys({1: SECRET}, me.public_key)
    config = desired_device(
        me, MAP, keys, private_key=KEYS[int(me.id[1:])], listen_port=51888, dial={HEAD_NODE.id: HUB_ENDPOINT}
    )
    received = BootSeconds(handshake) if handshake is not None else None
    peers = {key: PeerState(peer, None, 100, 200, received) for key, peer in config.peers.items()}
    device = DeviceState(config.private_key, 51888, config.addresses, config.mtu, True, peers)
    return Snapshot(me, MAP, device, lambda ip: Measured(deque(samples)), ray, True, reachable, (), NOW)


def test_a_healthy_worker_lists_itself_the_hub_and_the_peer_behind_it() -> None:
    status = build_status(snapshot(WORKER_A))
    assert {node.name: node.path.kind for node in status.nodes} == {"head": "direct", "gpu-a": "self", "gpu-b": "hub"}
    other = status.nodes[2].path
    assert (other.transport, other.endpoint, other.rtt_ms, other.loss) == ("udp", str(HUB_ENDPOINT), 2.0, 0.0)
    assert other.handshake_age_s == 5.0
    assert status.problems == ()


def test_totals_count_what_is_alive() -> None:
    status = build_status(snapshot(HEAD_NODE, ray={**RAY, WORKER_B.ip: RayState(False)}))
    assert to_json(status.totals) == {"CPU": 8.0, "GPU": 2.0, "memory": 2e9, "object_store_memory": 0.0}
    assert status.problems == ("gpu-b (10.99.0.3): not ALIVE in Ray",)


def test_a_node_that_ray_does_not_know_is_not_alive() -> None:
    known = {ip: state for ip, state in RAY.items() if ip != WORKER_A.ip}
    assert build_status(snapshot(HEAD_NODE, ray=known)).nodes[1].ray.alive is False


def test_stale_handshakes_mean_no_path() -> None:
    status = build_status(snapshot(WORKER_A, handshake=NOW - 200))
    assert [node.path.kind for node in status.nodes] == ["none", "self", "none"]
    assert any("head" in problem and "handshake" in problem for problem in status.problems)


def test_an_absent_head_is_unknown_and_not_dead() -> None:
    status = build_status(snapshot(WORKER_A, ray=None))
    assert all(node.ray.alive is None for node in status.nodes)
    assert status.problems == ("the Ray head does not answer",)


def test_lost_probes_and_an_unreachable_coordinator_are_reported() -> None:
    status = build_status(snapshot(WORKER_A, samples=(None, None), reachable=False))
    assert status.nodes[0].path.loss == 1.0
    assert len(status.problems) == 3
    assert not status.coordinator.reachable


def test_an_offline_node_is_not_a_problem() -> None:
    away = replace(MAP, nodes={**MAP.nodes, WORKER_B.id: replace(WORKER_B, online=False)})
    status = build_status(replace(snapshot(HEAD_NODE, ray={**RAY, WORKER_B.ip: RayState(False)}), mesh_map=away))
    assert status.problems == ()


def test_a_drained_node_is_not_a_problem() -> None:
    drained = replace(MAP, nodes={**MAP.nodes, WORKER_B.id: replace(WORKER_B, drained=True)})
    status = build_status(replace(snapshot(HEAD_NODE, ray={**RAY, WORKER_B.ip: RayState(False)}), mesh_map=drained))
    assert status.problems == ()
    assert [node.drained for node in status.nodes] == [False, False, True]


def test_no_device_is_the_only_problem_of_the_paths() -> None:
    status = build_status(replace(snapshot(WORKER_A), device=None))
    assert status.problems == ("the tunnel is down",)


def test_health_names_code_node_and_fix() -> None:
    status = build_status(snapshot(WORKER_A, reachable=False, ray=None))
    assert [problem.text for problem in status.health] == list(status.problems)
    by_code = {problem.code: problem for problem in status.health}
    assert {"coordinator_reachable", "ray_head_answers"} <= set(by_code)
    assert all(problem.fix for problem in status.health)
    answer: dict[str, Any] = to_json(status)
    assert [entry["text"] for entry in answer["health"]] == list(answer["problems"])
    assert all(set(entry) == {"code", "text", "node", "fix"} for entry in answer["health"])


def test_a_node_that_does_not_answer_is_a_problem_and_offers_nothing() -> None:
    silent = replace(MAP, nodes={**MAP.nodes, WORKER_B.id: replace(WORKER_B, silence="silent")})
    status = build_status(replace(snapshot(HEAD_NODE), mesh_map=silent))
    (problem,) = status.health
    assert (problem.code, problem.node) == ("node_answers", WORKER_B.name)
    node = status.nodes[2]
    # Ray still lists it, but its real state is unknown.
    assert (node.silent, node.ray.alive, dict(node.ray.resources)) == (True, None, {})
    assert status.totals.cpu == 8.0
    assert to_json(node)["ray"] == {
        "alive": None,
        "resources": {},
        "used": None,
        "last_known": None,
        "ports": node.ray.ports,
    }


@pytest.mark.parametrize(("listed", "alive"), [(RAY, None), ({HEAD_NODE.ip: RAY[HEAD_NODE.ip]}, False), (None, None)])
def test_a_silent_nodes_resources_are_its_last_known_ones(
    listed: Mapping[IPv4Address, RayState] | None, alive: bool | None
) -> None:
    silent = replace(MAP, nodes={**MAP.nodes, WORKER_B.id: replace(WORKER_B, silence="silent")})
    last_resources = LastResources()
    last_resources.record({ip: state.resources for ip, state in RAY.items()}, MAP)
    seen = replace(snapshot(HEAD_NODE, ray=listed), mesh_map=silent, last_resources=last_resources.last)
    head, _, node = build_status(seen).nodes
    assert (node.ray.alive, node.ray.last_known, dict(node.ray.resources)) == (alive, RAY[WORKER_B.ip].resources, {})
    assert head.ray.last_known is None, "it answers"


def test_offers_are_of_nodes_and_not_of_addresses() -> None:
    last_resources = LastResources()
    last_resources.record({WORKER_A.ip: {"CPU": 4.0}}, MAP)
    last_resources.record({WORKER_A.ip: {}}, MAP)
    assert last_resources.last(WORKER_A) == {"CPU": 4.0}, "what has just registered offers nothing yet"
    another = replace(WORKER_A, id="n99")
    last_resources.record({}, replace(MAP, nodes={another.id: another}))
    assert last_resources.last(another) is None
    assert last_resources.last(WORKER_A) is None, "it was removed"


def test_a_node_that_was_taken_down_does_not_count_as_lost() -> None:
    down = replace(MAP, nodes={**MAP.nodes, WORKER_B.id: replace(WORKER_B, online=False, down=True, silence="gone")})
    assert build_status(replace(snapshot(HEAD_NODE), mesh_map=down)).problems == ()


def test_a_killed_agent_is_distinguished_from_a_silent_machine() -> None:
    killed = replace(MAP, nodes={**MAP.nodes, WORKER_B.id: replace(WORKER_B, online=False, ended=True)})
    (problem,) = build_status(replace(snapshot(HEAD_NODE), mesh_map=killed)).health
    assert "its agent is no longer connected, but its machine answers" in problem.text


def test_a_disconnected_node_names_only_the_coordinators_node() -> None:
    cut_off = replace(snapshot(WORKER_A, ray=None), silent_s=lambda node: 7.0 if node.id != WORKER_A.id else None)
    silent = [problem for problem in build_status(cut_off).health if problem.code == "node_answers"]
    assert [problem.node for problem in silent] == [HEAD_NODE.name]
    assert "for 7 s" in silent[0].text


def test_unknown_values_are_not_zero() -> None:
    assert set(to_json(build_status(snapshot(WORKER_A, ray=None)).totals).values()) == {None}
    without_ray = replace(snapshot(WORKER_A, ray=None), expects_ray=False)
    assert set(to_json(build_status(without_ray).totals).values()) == {0}


def test_the_ports_of_each_ray_are_reported() -> None:
    nodes = {**MAP.nodes, WORKER_A.id: replace(WORKER_A, ray_ports={"metrics_export": 8500})}
    mesh_map = replace(MAP, mesh=replace(MAP.mesh, ray_ports={"gcs": 6380}), nodes=nodes)
    head, a, b = build_status(replace(snapshot(HEAD_NODE), mesh_map=mesh_map)).nodes
    assert (head.ray.ports["gcs"], head.ray.ports["metrics_export"]) == (6380, 20106)
    assert (a.ray.ports["metrics_export"], "gcs" in a.ray.ports) == (8500, False)
    shown = {"alive": True, "resources": RAY[WORKER_B.ip].resources, "used": None, "last_known": None}
    shown["ports"] = b.ray.ports
    assert to_json(b)["ray"] == shown
    without = build_status(replace(snapshot(HEAD_NODE), expects_ray=False)).nodes
    assert [node.ray.ports for node in without] == [{}, {}, {}]


@pytest.mark.parametrize("age_s", [5.0, 100.0, 179.0, 180.0, 181.0, 200.0, None])
def test_status_and_doctor_agree_on_a_stale_handshake(age_s: float | None) -> None:
    status = build_status(snapshot(WORKER_A, handshake=None if age_s is None else NOW - age_s))
    checks = examine(Facts(status=status))
    of_status = [problem.node for problem in status.health if problem.code == "handshake_fresh"]
    of_doctor = [check.node for check in checks if check.code == "handshake_fresh" and check.status == FAIL]
    is_stale = age_s is None or age_s >= 180
    assert (HEAD_NODE.name in of_status) == (HEAD_NODE.name in of_doctor) == is_stale
    assert bool(of_status) == bool(of_doctor) == is_stale


JUDGED_BY_BOTH = {"coordinator_reachable", "handshake_fresh", "peer_answers", "ray_head_answers", "ray_alive"}


@pytest.mark.parametrize("handshake_s", [5.0, 200.0])
@pytest.mark.parametrize("samples", [(2.0, 1.0, 3.0), (None, None, None)])
@pytest.mark.parametrize(
    "ray", [RAY, None, {**RAY, WORKER_B.ip: RayState(False)}, {**RAY, HEAD_NODE.ip: RayState(False)}]
)
@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("me", [HEAD_NODE, WORKER_A])
def test_the_doctor_agrees_with_problems_of_status(
    me: Node,
    reachable: bool,
    ray: Mapping[IPv4Address, RayState] | None,
    samples: tuple[float | None, ...],
    handshake_s: float,
) -> None:
    seen = snapshot(me, handshake=NOW - handshake_s, ray=ray, samples=samples, reachable=reachable)
    status = build_status(seen)
    checks = examine(Facts(status=status, ray_nodes=frozenset(node.name for node in status.nodes)))
    fine = {(check.code, check.node) for check in checks if check.status == OK}
    assert not fine & {(problem.code, problem.node) for problem in status.health}
    failed = {check.code for check in checks if check.status == FAIL} & JUDGED_BY_BOTH
    # Behind a silent hub status reports the paths alone.
    assert failed <= {problem.code for problem in status.health} | ({"ray_alive"} if handshake_s > 180 else set())


def with_node(node: Node) -> MeshMap:
    return replace(MAP, nodes={**MAP.nodes, node.id: node})


#: One fault in each mesh: the code under which both report it, and what the agent knows.
FAULTS: Mapping[str, tuple[str, Snapshot]] = {
    "no coordinator": ("coordinator_reachable", snapshot(WORKER_A, reachable=False)),
    "no tunnel": ("device_up", replace(snapshot(WORKER_A), device=None)),
    "no handshake": ("handshake_fresh", snapshot(WORKER_A, handshake=NOW - 200)),
    "no answer": ("peer_answers", snapshot(WORKER_A, samples=(None, None))),
    "silent": (
        "node_answers",
        replace(snapshot(HEAD_NODE), mesh_map=with_node(replace(WORKER_B, online=False, silence="silent"))),
    ),
    "killed": (
        "node_answers",
        replace(snapshot(HEAD_NODE), mesh_map=with_node(replace(WORKER_B, online=False, ended=True))),
    ),
    "no head": ("ray_head_answers", snapshot(WORKER_A, ray=None)),
    "head not listed": ("ray_head_answers", snapshot(WORKER_A, ray={**RAY, HEAD_NODE.ip: RayState(False)})),
    "worker not listed": ("ray_alive", snapshot(HEAD_NODE, ray={**RAY, WORKER_B.ip: RayState(False)})),
    "clone": (
        ONE_IDENTITY,
        replace(snapshot(HEAD_NODE), mesh_map=with_node(replace(WORKER_B, faults={ONE_IDENTITY: "a and b"}))),
    ),
    "hub": (
        HUB_FORWARDS,
        replace(snapshot(WORKER_A), mesh_map=with_node(replace(HEAD_NODE, faults={HUB_FORWARDS: "it cannot"}))),
    ),
    "healthy": ("", snapshot(WORKER_A)),
    "down": (
        "",
        replace(snapshot(HEAD_NODE), mesh_map=with_node(replace(WORKER_B, online=False, down=True, silence="gone"))),
    ),
    "drained": (
        "",
        replace(
            snapshot(HEAD_NODE, ray={**RAY, WORKER_B.ip: RayState(False)}),
            mesh_map=with_node(replace(WORKER_B, drained=True)),
        ),
    ),
}


def doctors_facts(seen: Snapshot) -> Facts:
    """Return the facts of a survey at the same moment: only the agents that are connected report."""
    ip = str(seen.me.ip)
    device = DeviceFacts(
        state=MISSING if seen.device is None else UP, interface="meshray0", addresses=(ip,), expected=ip
    )
    away = [node for node in seen.mesh_map.nodes.values() if not node.online]
    nodes = {
        str(node.name): NodeFacts(str(node.name), HostFacts(device) if node.id == seen.me.id else None)
        for node in seen.mesh_map.nodes.values()
        if node.online
    }
    return Facts(
        status=build_status(seen),
        ray_nodes=frozenset(
            str(node.name) for node in seen.mesh_map.nodes.values() if node.online and not node.drained
        ),
        nodes=nodes,
        silent={str(node.name): "not connected" for node in away},
        answering_machines=frozenset(str(node.name) for node in away if not node.silence),
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_status_and_doctor_judge_each_code_alike(fault: str) -> None:
    code, seen = FAULTS[fault]
    facts = doctors_facts(seen)
    assert facts.status is not None
    assert {problem.code for problem in facts.status.health} == {code} - {""}
    failed = {check.code for check in examine(facts) if check.status == FAIL}
    # Without a tunnel status reports nothing about the paths.
    beyond = {"handshake_fresh"} if code == "device_up" else set()
    assert (failed & judged_by_both()) - beyond == {code} - {""}


def judged_by_both() -> set[str]:
    return set(re.findall(r"^    ([a-z]+_[a-z_]+)  ", verdicts.__doc__ or "", re.MULTILINE))


def test_each_code_of_status_is_compared_with_the_doctor() -> None:
    assert {code for code, _ in FAULTS.values()} - {""} == judged_by_both()
    assert judged_by_both() >= JUDGED_BY_BOTH
