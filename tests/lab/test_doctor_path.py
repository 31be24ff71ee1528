"""The doctor reports faults between nodes and coordinator; the networks and the faults are in `faults_path`.

      wan
 ┌─────┼──────────┐
isp  near-nat  far-nat
 │     │          │
head  near       far
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.doctoring import Doctor, ask, until_well
from tests.lab.faults import Fault
from tests.lab.faults_path import FAULTS, Stage
from tests.lab.world import World


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with World("doctor-path") as world:
        stage = Stage.build(world)
        until_well(stage.cluster.hosts)
        yield stage


def test_a_healthy_mesh_has_no_failing_check(stage: Stage, doctor: Doctor) -> None:
    doctor.passes("home routers, a provider's line, a proxy", *stage.cluster.hosts)
    codes = {check["code"] for check in ask(stage.cluster.head).checks}
    assert {"coordinator_tcp", "proxy_works", "udp_in", "udp_out", "path_loss", "path_mtu", "nat_kind"} <= codes


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
def test_the_first_failing_check_names_the_cause(stage: Stage, fault: Fault[Stage], doctor: Doctor) -> None:
    doctor.names(fault, stage, stage.cluster.hosts)
