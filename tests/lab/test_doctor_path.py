"""The doctor names what is broken between nodes and coordinator; the place and the faults are in `faults_path`.

      wan
 ┌─────┼──────────┐
isp  near-nat  far-nat
 │     │          │
head  near       far
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.lab.faults import Fault
from tests.lab.faults_path import FAULTS, Stage, told
from tests.lab.world import World

#: A healthy mesh is looked at within this, also on two slow cores.
HEALTHY_S = 10.0


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with World("doctor-path") as world:
        yield Stage.build(world)


def healthy(stage: Stage) -> bool:
    return all(not stage.first_fail(host.name) for host in (stage.cluster.head,))


def test_a_healthy_mesh_has_no_failing_check(stage: Stage) -> None:
    stage.world.wait_until(lambda: healthy(stage), 30, "a healthy mesh")
    for host in stage.cluster.hosts:
        began = time.monotonic()
        report = stage.doctor(host.name)
        assert time.monotonic() - began < HEALTHY_S
        assert not [check for check in report["checks"] if check["status"] == "fail"]
    codes = {check["code"] for check in stage.doctor("head")["checks"]}
    assert {"coordinator_tcp", "proxy_works", "udp_in", "udp_out", "path_loss", "path_mtu", "nat_kind"} <= codes


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
def test_the_first_failing_check_names_the_cause(stage: Stage, fault: Fault[Stage]) -> None:
    asked = fault.asked or fault.node
    fault.inject(stage)
    try:
        check = stage.first_fail(asked)
        assert check, json.dumps(stage.doctor(asked), indent=1)
        assert check["code"] == fault.code, told(check)
        # What is found without an agent is about the machine on which it was asked.
        assert fault.node in (check["node"] or asked, check["peer"]), told(check)
        assert check["fix"]
    finally:
        fault.heal(stage)
    stage.world.wait_until(
        lambda: not stage.first_fail("head") and not stage.first_fail(asked), 45, "a healthy mesh again"
    )
