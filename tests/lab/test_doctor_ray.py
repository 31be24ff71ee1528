"""One thing about Ray breaks at a time, and the doctor's first failing check names it.

               switch wan 203.0.113.0/24
        ┌─────────────┼──────────────┐
      head         walled           nat    port-keeping NAT: nothing new comes in
  203.0.113.10  203.0.113.20    203.0.113.30
                drops all            │ switch nat-lan 192.168.7.0/24
                inbound            nested
                                192.168.7.10

The tests use the session's cluster; each begins and ends with it whole.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from meshray.doctor.job import transfer_program
from tests.lab.cluster import Cluster
from tests.lab.doctoring import Answer, Doctor, ask, until_well
from tests.lab.faults import Fault
from tests.lab.faults_ray import FAULTS, OBJECT_MANAGER, accepted, dropped, host_of

#: Long enough for 16 MiB here.
MOVE_S = 8
#: A Ray that was ended starts again with backoff, on two slow cores.
BACK_DEADLINE_S = 150


def with_ray(answer: Answer) -> bool:
    """Return whether Ray was checked and is ok: a starting node causes a warning, a skipped one reports nothing."""
    alive = [check for check in answer.checks if check["code"] == "ray_alive"]
    return bool(alive) and all(check["status"] == "ok" for check in alive)


def wait_until_healthy(cluster: Cluster) -> None:
    until_well([cluster.head], with_ray, BACK_DEADLINE_S)


def test_a_healthy_cluster_has_no_failing_check(cluster: Cluster, doctor: Doctor) -> None:
    wait_until_healthy(cluster)
    doctor.passes("Ray: open, behind a firewall, behind a home router", *cluster.hosts)


def test_a_healthy_cluster_passes_the_deep_look_and_nothing_stays(cluster: Cluster) -> None:
    answer = ask(cluster.head, "--deep", deadline_s=BACK_DEADLINE_S)
    assert not answer.failing, answer
    moved = {
        (check["node"], check["peer"])
        for check in answer.checks
        if check["code"] == "ray_deep" and check["peer"] and check["status"] == "ok"
    }
    assert moved == set(itertools.permutations((host.name for host in cluster.hosts), 2))
    left = cluster.python(
        "import ray, json; from ray.util.state import list_objects; ray.init('auto', log_to_driver=False);"
        "print(json.dumps([o.object_size for o in list_objects() if o.object_size >= 2**20]))"
    )
    assert left == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_first_failing_check_names_the_cause(cluster: Cluster, fault: Fault[Cluster], doctor: Doctor) -> None:
    doctor.names(fault, cluster, cluster.hosts, with_ray, BACK_DEADLINE_S)


def test_fix_starts_a_ray_that_hangs_again(cluster: Cluster) -> None:
    fault = next(fault for fault in FAULTS if fault.name == "raylet-stopped")
    node = host_of(cluster, fault.node)
    try:
        fault.inject(cluster)
        repaired = ask(node, "--fix", "--yes", deadline_s=BACK_DEADLINE_S)
    finally:
        fault.heal(cluster)
        wait_until_healthy(cluster)
    assert repaired.report["repaired"] == ["Ray was started again"]


def test_the_deep_look_names_the_pair_that_cannot_hand_objects_over(cluster: Cluster) -> None:
    """Only nested is kept from walled's object manager: both directions of that pair fail, and no other."""
    wait_until_healthy(cluster)
    nodes = {cluster.ip(host): host.name for host in cluster.hosts}
    order = json.dumps({"nodes": nodes, "move_s": MOVE_S})
    rule = f"ip saddr {{nested}} tcp dport {OBJECT_MANAGER}"
    try:
        dropped("walled", rule)(cluster)
        found = ask(cluster.head).failing
        answer = cluster.head.run(
            ["meshray", "run", "--", "python", "-", order],
            stdin=Path(transfer_program.__file__).read_text(),
            deadline_s=120,
        ).stdout
    finally:
        accepted("walled")(cluster)
        wait_until_healthy(cluster)
    assert [(check["code"], check["node"], check["peer"]) for check in found] == [("ray_ports", "nested", "walled")]
    steps = [json.loads(line) for line in answer.splitlines() if line.startswith("{")]  # Ray may print something too.
    assert [step for step in steps if step["step"] == "task" and step["error"]] == []
    moves = {(step["source"], step["target"]): step["error"] for step in steps if step["step"] == "move"}
    assert len(moves) == 6
    broken = {pair for pair, error in moves.items() if error}
    assert broken
    assert broken <= {("nested", "walled"), ("walled", "nested")}
