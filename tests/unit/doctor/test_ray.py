"""The facts about a node's Ray, and the node at fault if it does not answer to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, NodeFacts, decode, encode
from meshray.doctor.ray.checks import SPECS
from meshray.doctor.ray.facts import (
    DROPPED,
    FOREIGN,
    OPEN,
    REFUSED,
    SILENT,
    WORKERS,
    GpuFacts,
    PortAnswer,
    RayFacts,
    RayProcess,
    TableRow,
)
from meshray.doctor.report import FAIL, OK, SKIP, WARN
from meshray.model.path import PathKind, Transport
from meshray.model.ray_end import OUT_OF_MEMORY
from meshray.protocol.doctor import Check
from meshray.protocol.status import CoordinatorStatus, NodeStatus, PathStatus, RayStatus, Status

NAMES = ("head", "gpu-1", "gpu-2")
IPS = {name: f"10.99.0.{number}" for number, name in enumerate(NAMES, start=1)}
RAYLET, GCS = RayProcess("raylet", 70), RayProcess("gcs_server", 60)
TABLE = tuple(TableRow(ip, name) for name, ip in IPS.items())
WORKER_PORTS = (
    PortAnswer(20101, "node manager", OPEN, 1.0),
    PortAnswer(20102, "object manager", OPEN, 1.0),
    PortAnswer(20104, "agent", OPEN, 1.0),
    PortAnswer(10002, WORKERS, REFUSED, 1.0),
)
HEAD_PORTS = (PortAnswer(6379, "GCS", OPEN, 1.0), PortAnswer(8265, "dashboard", OPEN, 1.0), *WORKER_PORTS)


def healthy(name: str) -> RayFacts:
    is_head = name == "head"
    return RayFacts(
        is_head=is_head,
        ip=IPS[name],
        address_error="",
        address_ms=0.4,
        install_error="",
        ray="2.60.0",
        python="3.11.7",
        interpreter="/opt/ray/bin/python",
        started="2.60.0",
        head_ray="2.60.0",
        head_python="3.11.7",
        state="running",
        processes=(GCS, RayProcess("dashboard", 65), RAYLET) if is_head else (RAYLET,),
        ports={peer: HEAD_PORTS if peer == "head" else WORKER_PORTS for peer in NAMES},
        token_path="/run/meshray/ray/token",
        token_file="same",
        with_token=200,
        without_token=401,
        table=TABLE,
        gpus=GpuFacts(),
    )


def mesh(changed: Mapping[str, RayFacts] | None = None, alive: Mapping[str, bool] | None = None) -> Facts:
    ray = {name: healthy(name) for name in NAMES} | dict(changed or {})
    up = PathStatus(PathKind.DIRECT, Transport.UDP, None, rtt_ms=1.0, loss=0.0, handshake_age_s=1.0)
    nodes = tuple(
        NodeStatus(
            name,
            IPS[name],
            "head" if name == "head" else "worker",
            True,
            up,
            RayStatus((alive or {}).get(name, True), {"CPU": 1.0}),
        )
        for name in NAMES
    )
    return Facts(
        status=Status("lab", 7, "head", CoordinatorStatus(True), nodes),
        ray_nodes=frozenset(NAMES),
        nodes={name: NodeFacts(name, ray=facts) for name, facts in ray.items()},
    )


def changed(name: str, **fields: object) -> Facts:
    return mesh({name: replace(healthy(name), **fields)})  # type: ignore[arg-type]


def answering(port: int, answer: str, of: str = "gpu-1") -> tuple[PortAnswer, ...]:
    ports = HEAD_PORTS if of == "head" else WORKER_PORTS
    return tuple(replace(one, answer=answer, ms=2200.0) if one.port == port else one for one in ports)


def dialled(broken: Mapping[tuple[str, str], tuple[PortAnswer, ...]]) -> Facts:
    """Return the whole mesh, in which these (from, to) answered so."""
    nodes = {}
    for name in NAMES:
        own = {to: ports for (source, to), ports in broken.items() if source == name}
        nodes[name] = replace(healthy(name), ports={**healthy(name).ports, **own})
    return mesh(nodes)


def failing(facts: Facts) -> list[tuple[str, str, str]]:
    return [(check.code, check.node or "", check.peer or "") for check in examine(facts) if check.status == FAIL]


def only(facts: Facts, code: str, node: str) -> Check:
    found = [check for check in examine(facts, specs=SPECS) if check.code == code and check.node == node]
    return min(found, key=lambda check: check.status != FAIL)


def test_a_healthy_mesh_is_ok_in_everything() -> None:
    report = examine(mesh(), specs=SPECS)
    assert {check.status for check in report} == {OK}
    assert {(check.code, check.node) for check in report} == {(spec.code, name) for spec in SPECS for name in NAMES}


def test_facts_survive_encoding_for_another_node() -> None:
    facts = changed("gpu-1", processes=None, table=None).nodes["gpu-1"]
    assert decode(NodeFacts, encode(facts)) == facts


@pytest.mark.parametrize(
    ("ago_s", "because", "status", "fix"),
    [
        (40.0, "OSError: [Errno 24] Too many open files", WARN, "LimitNOFILE="),
        (40.0, "Ray's raylet ended with exit code 1", WARN, "meshray logs ray"),
        (40.0, f"{OUT_OF_MEMORY} in Ray's control group: Ray's raylet ended", WARN, "docker run --memory"),
        (900.0, "Ray's raylet ended with exit code 1", OK, ""),
        (None, "", OK, ""),
    ],
)
def test_a_ray_that_was_started_again_leaves_a_trace(ago_s: float | None, because: str, status: str, fix: str) -> None:
    facts = changed("gpu-1", ended_ago_s=ago_s, ended_because=because)
    found = only(facts, "ray_running", "gpu-1")
    assert (found.status, fix in found.fix) == (status, True)
    if status == WARN:
        assert f"Ray ended 40 s ago and was started again: {because}; raylet" in found.evidence
    assert failing(facts) == []


@pytest.mark.parametrize(
    ("fields", "code", "evidence"),
    [
        ({"address_error": "no answer in 1.5 s"}, "own_address", "10.99.0.2"),
        ({"install_error": "/opt/ray/bin/python has no Ray", "install_fix": "pip …"}, "ray_installed", "has no Ray"),
        ({"ray": "2.59.0", "started": "2.59.0"}, "ray_versions", "the head has Ray 2.60.0"),
        ({"ray": "2.61.0"}, "ray_versions", "started Ray 2.60.0"),
        ({"python": "3.12.1"}, "ray_versions", "Python 3.12.1"),
        ({"processes": (replace(RAYLET, stopped=True),)}, "ray_running", "raylet (pid 70)"),
        ({"processes": ()}, "ray_running", "its raylet has ended"),
        ({"state": "backoff", "deaths": 3, "error": "port 20101 … redis (pid 8)"}, "ray_running", "redis (pid 8)"),
        ({"state": "starting", "deaths": 1, "error": "its words"}, "ray_running", "Ray ended once"),
        ({"token_file": "other"}, "ray_token", "another token"),
        ({"token_file": "missing"}, "ray_token", "does not exist"),
        ({"with_token": 401}, "ray_token", "answers 401"),
        ({"without_token": 200}, "ray_token", "without a token"),
    ],
)
def test_a_nodes_report_about_itself(fields: dict[str, object], code: str, evidence: str) -> None:
    facts = changed("gpu-1", **fields)
    assert failing(facts) == [(code, "gpu-1", "")]
    check = only(facts, code, "gpu-1")
    assert evidence in check.evidence
    assert check.fix


@pytest.mark.parametrize(
    ("fields", "code", "status"),
    [
        ({"python": "3.11.9"}, "ray_versions", OK),
        ({"state": "starting", "processes": ()}, "ray_running", WARN),
        ({"state": "starting"}, "ray_running", WARN),
        ({"state": "waiting", "processes": (), "error": "the head's Ray is down"}, "ray_running", SKIP),
        ({"address_error": None}, "own_address", SKIP),
        ({"install_error": None}, "ray_installed", SKIP),
        ({"with_token": 0, "without_token": 0}, "ray_token", SKIP),
        ({"ray": "2.44.0", "started": "2.44.0", "without_token": 200}, "ray_token", SKIP),
        ({"why_none": "the node is drained"}, "ray_running", SKIP),
        ({"why_none": "the node is drained"}, "ray_ports", SKIP),
    ],
)
def test_harmless_facts_are_not_failures(fields: dict[str, object], code: str, status: str) -> None:
    assert only(changed("gpu-1", **fields), code, "gpu-1").status == status


def test_a_node_whose_probes_did_not_end_is_skipped() -> None:
    facts = replace(mesh(), nodes={"gpu-1": NodeFacts("gpu-1")})
    assert {check.status for check in examine(facts, specs=SPECS)} == {SKIP}


@pytest.mark.parametrize(
    ("port", "answer", "evidence"),
    [
        (6379, SILENT, "gcs_server (pid 60) hangs"),
        (20101, SILENT, "raylet (pid 70) hangs"),
        (8265, REFUSED, "dashboard (pid 65) does not answer"),
    ],
)
def test_a_head_that_does_not_answer_itself(port: int, answer: str, evidence: str) -> None:
    facts = dialled({("head", "head"): answering(port, answer, "head")})
    assert failing(facts)[0] == ("ray_running", "head", "")
    assert evidence in only(facts, "ray_running", "head").evidence


def test_an_ended_dashboard_is_not_found() -> None:
    ports = {**healthy("head").ports, "head": answering(8265, REFUSED, "head")}
    facts = changed("head", processes=(GCS, RAYLET), ports=ports)
    assert "its dashboard has ended" in only(facts, "ray_running", "head").evidence


def test_an_unreachable_node_is_that_nodes_fault() -> None:
    dropped = answering(20102, DROPPED)
    facts = dialled({("head", "gpu-1"): dropped, ("gpu-2", "gpu-1"): dropped})
    assert failing(facts) == [("ray_ports", "gpu-1", "")]
    check = only(facts, "ray_ports", "gpu-1")
    assert "object manager of gpu-1 (TCP 20102)" in check.evidence
    assert "from gpu-2, head" in check.evidence


def test_a_node_that_reaches_no_other_is_at_fault() -> None:
    dropped = {to: answering(20101, DROPPED, to) for to in ("head", "gpu-2")}
    facts = dialled({("gpu-1", to): ports for to, ports in dropped.items()})
    assert failing(facts) == [("ray_ports", "gpu-1", "")]


def test_a_fault_of_a_pair_names_both_nodes_and_the_direction() -> None:
    facts = dialled({("gpu-1", "gpu-2"): answering(20102, DROPPED, "gpu-2")})
    assert failing(facts) == [("ray_ports", "gpu-1", "gpu-2")]


def test_one_node_alone_reports_the_pair() -> None:
    whole = dialled({("gpu-1", "head"): answering(20101, SILENT, "head")})
    facts = replace(whole, nodes={"gpu-1": whole.nodes["gpu-1"]})
    assert failing(facts) == [("ray_ports", "gpu-1", "head")]


def test_a_dropped_worker_port_range_is_detected_and_an_idle_one_is_not() -> None:
    facts = dialled({(name, "gpu-2"): answering(10002, DROPPED, "gpu-2") for name in ("head", "gpu-1")})
    assert failing(facts) == [("ray_ports", "gpu-2", "")]
    assert WORKERS in only(facts, "ray_ports", "gpu-2").evidence


@pytest.mark.parametrize("answer", [REFUSED, SILENT])
def test_an_agent_that_is_not_installed_is_not_a_failure(answer: str) -> None:
    assert failing(dialled({("head", "gpu-1"): answering(20104, answer)})) == []


def test_nothing_listens_where_ray_does_not_run() -> None:
    refused = tuple(replace(port, answer=REFUSED) for port in WORKER_PORTS)
    nodes = {
        "head": replace(healthy("head"), ports={**healthy("head").ports, "gpu-1": refused}),
        "gpu-1": replace(healthy("gpu-1"), state="backoff", deaths=2, error="its words", processes=()),
    }
    assert failing(mesh(nodes, {"gpu-1": False})) == [("ray_running", "gpu-1", "")]


def test_another_program_on_a_port_is_named_as_such() -> None:
    ports = {("head", "gpu-1"): answering(20101, FOREIGN), ("gpu-2", "gpu-1"): answering(20101, FOREIGN)}
    check = only(dialled(ports), "ray_ports", "gpu-1")
    assert "another program" in check.evidence
    assert "20101" in check.fix


def test_a_dead_port_between_two_hides_what_follows_for_these_two() -> None:
    ports = {**healthy("gpu-1").ports, "head": answering(6379, DROPPED, "head")}
    facts = mesh({"gpu-1": replace(healthy("gpu-1"), ports=ports, with_token=0, without_token=0)}, {"gpu-1": False})
    assert failing(facts) == [("ray_ports", "gpu-1", "head")]


def test_a_second_ray_is_found_on_the_node_that_has_its_address() -> None:
    nodes = {
        "head": replace(healthy("head"), table=(*TABLE, TableRow("192.168.7.10", "192.168.7.10"))),
        "gpu-2": replace(healthy("gpu-2"), table=(*TABLE, TableRow("192.168.7.10", "192.168.7.10", here=True))),
    }
    facts = mesh(nodes)
    assert failing(facts) == [("ray_advertised", "gpu-2", "")]
    assert "192.168.7.10" in only(facts, "ray_advertised", "gpu-2").evidence


def test_a_ray_of_no_node_is_reported_as_well() -> None:
    facts = changed("head", table=(*TABLE, TableRow("192.0.2.9", "192.0.2.9")))
    assert failing(facts) == [("ray_advertised", "", "")]


def test_two_rays_at_one_address_are_worth_a_warning() -> None:
    facts = changed("head", table=(*TABLE, TableRow(IPS["gpu-1"], "gpu-1")))
    assert failing(facts) == []
    assert only(facts, "ray_advertised", "gpu-1").status == WARN
