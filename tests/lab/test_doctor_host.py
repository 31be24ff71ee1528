"""The doctor names what is wrong with a machine: one fault at a time on a mesh without Ray (see `faults_host.py`).

    switch wan 203.0.113.0/24
     ┌──────────┴──────────┐
   head                  worker
203.0.113.10          203.0.113.20
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.doctoring import Doctor, ask, until_well
from tests.lab.faults import Fault
from tests.lab.faults_host import FAULTS, NFT, HostStage, process_id
from tests.lab.waiting import wait_until
from tests.lab.world import World

#: A repair waits until the hub is heard again, on two slow cores, seconds.
MEND_S = 60


@pytest.fixture(scope="module")
def stage() -> Iterator[HostStage]:
    with World("doctor-host") as world:
        stage = HostStage.build(world)
        until_well(stage.cluster.hosts)
        yield stage


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_first_failing_check_is_the_cause(stage: HostStage, fault: Fault[HostStage], doctor: Doctor) -> None:
    doctor.names(fault, stage, stage.cluster.hosts)


def test_fix_puts_the_guard_back(stage: HostStage) -> None:
    next(fault for fault in FAULTS if fault.name == "guard-cannot-be-set").inject(stage)
    try:
        wait_until(lambda: [check["code"] for check in ask(stage.worker).failing] == ["guard"], 20, "no guard")
    finally:
        stage.worker.shell(f"umount {NFT}")
    mended = ask(stage.worker, "--fix", "--yes", deadline_s=MEND_S)
    (done,) = mended.report["repaired"]
    assert "table inet meshray in place" in done
    assert not mended.failing, mended


def test_fix_makes_an_interface_anew_whose_engine_hangs(stage: HostStage) -> None:
    stage.worker.shell(f"kill -STOP {process_id('engine')}")
    mended = ask(stage.worker, "--fix", "--yes", deadline_s=MEND_S)
    assert mended.report["repaired"] == ["meshray0 was made anew"]
    until_well([stage.head, stage.worker])
