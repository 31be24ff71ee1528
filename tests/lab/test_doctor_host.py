"""The doctor names what is wrong with a machine: one fault at a time on a mesh without Ray (see `faults_host.py`).

    switch wan 203.0.113.0/24
     ┌──────────┴──────────┐
   head                  worker
203.0.113.10          203.0.113.20
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.doctoring import Doctor, until_well
from tests.lab.faults import Fault
from tests.lab.faults_host import FAULTS, HostStage
from tests.lab.world import World


@pytest.fixture(scope="module")
def stage() -> Iterator[HostStage]:
    with World("doctor-host") as world:
        stage = HostStage.build(world)
        until_well(stage.cluster.hosts)
        yield stage


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_first_failing_check_is_the_cause(stage: HostStage, fault: Fault[HostStage], doctor: Doctor) -> None:
    doctor.names(fault, stage, stage.cluster.hosts)
