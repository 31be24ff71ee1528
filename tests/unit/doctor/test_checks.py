"""The doctor reports the cause, and only the cause."""

from dataclasses import replace

import pytest

from meshray.doctor.control.facts import ControlFacts
from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, NodeFacts
from meshray.doctor.report import FAIL, OK, SKIP, WARN
from meshray.errors import MeshrayError
from meshray.model.path import PathKind, Transport
from meshray.protocol.api import SilentConnection
from meshray.protocol.codec import to_json
from meshray.protocol.doctor import Check
from meshray.protocol.status import CoordinatorStatus, NodeStatus, PathStatus, RayStatus, Status

ALIVE = RayStatus(alive=True, resources={"CPU": 2.0, "memory": 1e9, "node:10.99.0.1": 1.0})
UP = PathStatus(PathKind.DIRECT, Transport.UDP, "192.0.2.1:51888", rtt_ms=1.5, loss=0.0, mtu=1420, handshake_age_s=20.0)
THROUGH_HUB = PathStatus(
    PathKind.HUB, Transport.UDP, "192.0.2.1:51888", rtt_ms=3.0, loss=0.0, mtu=1420, handshake_age_s=20.0
)
DEAD = PathStatus(PathKind.NONE)


def node(name: str, number: int, role: str = "worker", path: PathStatus = UP, **changes: object) -> NodeStatus:
    fields: dict[str, object] = {"online": True, "ray": ALIVE, **changes}
    return NodeStatus(name=name, ip=f"10.99.0.{number}", role=role, path=path, **fields)  # type: ignore[arg-type]


def seen_by(me: str, *nodes: NodeStatus, reachable: bool = True) -> Facts:
    status = Status("lab", 7, me, CoordinatorStatus(reachable), nodes)
    return Facts(status=status, ray_nodes=frozenset(node.name for node in nodes if node.role != "static"))


HEAD = node("head", 1, "head")
ME = node("gpu-1", 2, path=PathStatus(PathKind.SELF))
OTHER = node("gpu-2", 3, path=THROUGH_HUB)


def failing(report: tuple[Check, ...]) -> list[tuple[str, str]]:
    return [(check.code, check.node or "") for check in report if check.status == FAIL]


def test_a_healthy_mesh_has_only_ok() -> None:
    report = examine(seen_by("gpu-1", HEAD, ME, OTHER, node("phone", 4, "static", DEAD, ray=RayStatus())))
    assert {check.status for check in report} == {OK}
    assert {check.code for check in report} == {
        "enrolled",
        "agent_running",
        "coordinator_reachable",
        "handshake_fresh",
        "peer_answers",
        "ray_head_answers",
        "ray_alive",
    }


def test_an_unenrolled_machine_gets_only_the_hint_to_join() -> None:
    report = examine(Facts(enrolled=False))
    assert failing(report) == []
    assert (report[0].code, report[0].status) == ("enrolled", WARN)
    assert all(check.status == SKIP for check in report[1:])
    assert all("enrolment" in check.evidence for check in report[1:])


def test_without_an_agent_only_that_fails() -> None:
    report = examine(Facts(agent_error="no agent runs on this machine"))
    assert failing(report) == [("agent_running", "")]
    assert next(check for check in report if check.status == FAIL).fix.startswith("meshray up")


def test_a_silent_hub_hides_everything_behind_it() -> None:
    head = node("head", 1, "head", DEAD, ray=RayStatus())
    other = node("gpu-2", 3, path=DEAD, ray=RayStatus())
    report = examine(seen_by("gpu-1", head, node("gpu-1", 2, path=PathStatus(PathKind.SELF), ray=RayStatus()), other))
    assert failing(report) == [("handshake_fresh", "head")]


def test_a_silent_worker_does_not_hide_the_others() -> None:
    workers = [node("gpu-1", 2, path=DEAD, ray=RayStatus(alive=False)), node("gpu-2", 3)]
    report = examine(seen_by("head", node("head", 1, "head", PathStatus(PathKind.SELF)), *workers))
    assert failing(report) == [("handshake_fresh", "gpu-1")]
    assert [check.status for check in report if check.node == "gpu-2"] == [OK] * 3


def test_the_data_path_works_without_the_coordinator() -> None:
    report = examine(seen_by("gpu-1", HEAD, ME, OTHER, reachable=False))
    assert failing(report) == [("coordinator_reachable", "gpu-1")]


def test_probes_that_do_not_come_back_hide_ray() -> None:
    mute = PathStatus(PathKind.HUB, Transport.UDP, "192.0.2.1:51888", rtt_ms=None, loss=1.0, handshake_age_s=20.0)
    report = examine(seen_by("gpu-1", HEAD, ME, node("gpu-2", 3, path=mute, ray=RayStatus(alive=False))))
    assert failing(report) == [("peer_answers", "gpu-2")]


@pytest.mark.parametrize(("loss", "status"), [(0.1, OK), (0.5, WARN), (1.0, FAIL)])
def test_loss_is_named_before_it_is_total(loss: float, status: str) -> None:
    lossy = PathStatus(
        PathKind.DIRECT, Transport.UDP, None, rtt_ms=5.0 if loss < 1 else None, loss=loss, handshake_age_s=1.0
    )
    report = examine(seen_by("gpu-1", HEAD, ME, node("gpu-2", 3, path=lossy)))
    (check,) = [check for check in report if check.code == "peer_answers" and check.node == "gpu-2"]
    assert check.status == status


def test_a_node_that_was_switched_off_is_a_warning_not_a_failure() -> None:
    off = node("gpu-2", 3, path=DEAD, online=False, ray=RayStatus(alive=False))
    report = examine(seen_by("head", node("head", 1, "head", PathStatus(PathKind.SELF)), off))
    assert failing(report) == []
    assert [check.status for check in report if check.node == "gpu-2"] == [SKIP, WARN, SKIP]


@pytest.mark.parametrize("ray", [RayStatus(alive=False), RayStatus(alive=True, resources={"node:10.99.0.3": 1.0})])
def test_a_node_whose_resources_are_not_counted(ray: RayStatus) -> None:
    report = examine(seen_by("gpu-1", HEAD, ME, node("gpu-2", 3, path=THROUGH_HUB, ray=ray)))
    assert failing(report) == [("ray_alive", "gpu-2")]


def test_a_dead_ray_head_hides_its_workers() -> None:
    nodes = [node("head", 1, "head", PathStatus(PathKind.SELF), ray=RayStatus()), node("gpu-1", 2, ray=RayStatus())]
    assert failing(examine(seen_by("head", *nodes))) == [("ray_head_answers", "head")]


def test_a_mesh_without_ray_is_healthy() -> None:
    nodes = [node("head", 1, "head", PathStatus(PathKind.SELF), ray=RayStatus()), node("gpu-1", 2, ray=RayStatus())]
    status = Status("lab", 7, "head", CoordinatorStatus(True), tuple(nodes))
    assert failing(examine(Facts(status=status))) == []


def test_one_node_only() -> None:
    report = examine(seen_by("gpu-1", HEAD, ME, OTHER), "gpu-2")
    assert {check.node for check in report} == {None, "gpu-2"}
    with pytest.raises(MeshrayError, match="no node 'gpu-9'"):
        examine(seen_by("gpu-1", HEAD, ME, OTHER), "gpu-9")


def test_json_has_the_fields_that_scripts_rely_on() -> None:
    entry = to_json(examine(seen_by("gpu-1", HEAD, ME))[0])
    assert {"code", "title", "status", "node", "evidence", "fix"} <= entry.keys()
    assert entry["node"] is None


def test_a_user_without_access_to_the_agent_gets_the_sudo_command_and_no_failure() -> None:
    report = examine(Facts(agent_error="the agent belongs to another user", allowed_by="sudo meshray doctor"))
    assert failing(report) == []
    closed = next(check for check in report if check.code == "agent_running")
    assert (closed.status, closed.fix) == (SKIP, "sudo meshray doctor")
    assert {check.status for check in report if "agent_running" in check.depends_on} == {SKIP}


def test_a_missing_agent_is_distinguished_from_a_missing_node() -> None:
    off = node("gpu-2", 3, path=THROUGH_HUB, online=False, ray=RayStatus(alive=False))
    facts = replace(
        seen_by("head", node("head", 1, "head", PathStatus(PathKind.SELF)), off), silent={"gpu-2": "not connected"}
    )
    for heard, words in ((frozenset({"gpu-2"}), "its agent has stopped"), (frozenset[str](), "no packets arrive")):
        report = examine(replace(facts, answering_machines=heard))
        assert failing(report) == [("node_answers", "gpu-2")]
        assert words in next(check.evidence for check in report if check.status == FAIL)


@pytest.mark.parametrize(
    ("path", "answering", "version", "cause"),
    [
        (DEAD, False, "1.0", "its packets no longer arrive, and its connection has not timed out yet"),
        (DEAD, True, "1.0", "its agent hangs, or a signal has stopped it"),
        (THROUGH_HUB, False, "1.0", "its agent hangs, or a signal has stopped it"),
        (THROUGH_HUB, True, "0.9", "its meshray 0.9 does not know this question"),
        (DEAD, False, "0.9", "its packets no longer arrive"),
    ],
)
def test_an_agent_that_is_connected_and_silent_gets_the_cause_that_the_evidence_allows(
    path: PathStatus, answering: bool, version: str, cause: str
) -> None:
    head, silent = node("head", 1, "head", PathStatus(PathKind.SELF)), node("gpu-2", 3, path=path)
    versions = ControlFacts(versions={"gpu-2": version}, coordinator_version="1.0")
    facts = replace(
        seen_by("head", head, silent),
        nodes={"head": NodeFacts("head", control=versions)},
        silent={"gpu-2": "its agent did not answer in 10 s"},
        answering_machines=frozenset({"gpu-2"} if answering else ()),
    )
    failed = next(check for check in examine(facts) if check.status == FAIL)
    assert (failed.code, failed.node) == ("node_answers", "gpu-2")
    assert failed.evidence.startswith("the node is connected, but its agent did not answer in 10 s: ")
    assert cause in failed.evidence
    assert len(failed.explanation) == 3


@pytest.mark.parametrize(
    ("acknowledged", "answering", "cause"),
    [
        (False, False, "its packets no longer arrive, and its connection has not timed out yet (no handshake with it"),
        (False, True, "its agent hangs, or a signal has stopped it (its machine answers over the overlay)"),
        (True, True, "its agent hangs, or a signal has stopped it"),
        # Its proxy may acknowledge in its place: neither cause is contradicted.
        (True, False, "its agent hangs, or a signal has stopped it, or its packets no longer arrive"),
    ],
)
def test_what_the_kernel_knows_of_a_silent_connection_counts(acknowledged: bool, answering: bool, cause: str) -> None:
    head, silent = node("head", 1, "head", PathStatus(PathKind.SELF)), node("gpu-2", 3, path=DEAD)
    facts = replace(
        seen_by("head", head, silent),
        silent={"gpu-2": "nothing came from its agent for 42 s"},
        connections={"gpu-2": SilentConnection(42.0, acknowledged)},
        answering_machines=frozenset({"gpu-2"} if answering else ()),
    )
    failed = next(check for check in examine(facts) if check.status == FAIL)
    assert f"nothing came from its agent for 42 s: {cause}" in failed.evidence
