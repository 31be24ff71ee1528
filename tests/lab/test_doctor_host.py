"""The doctor reports a machine's fault: one at a time on a mesh without Ray (see `faults_host.py`).

    switch wan 203.0.113.0/24
     ┌──────────┴──────────┐
   head                  worker
203.0.113.10          203.0.113.20
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshray.firewall.firewall import CHECK_INTERVAL_S
from tests.lab.doctoring import Doctor, ask, until_well
from tests.lab.faults import Fault
from tests.lab.faults_host import FAULTS, FIREWALLS, HostStage, process_id
from tests.lab.waiting import wait_until
from tests.lab.world import World

#: A repair waits until the hub answers again, on two slow cores, seconds.
REPAIR_S = 60


@pytest.fixture(scope="module")
def stage() -> Iterator[HostStage]:
    with World("doctor-host") as world:
        stage = HostStage.build(world)
        until_well(stage.cluster.hosts)
        yield stage


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_first_failing_check_is_the_cause(stage: HostStage, fault: Fault[HostStage], doctor: Doctor) -> None:
    doctor.names(fault, stage, stage.cluster.hosts)


def test_a_stopped_agent_continues_by_the_printed_fix_and_by_up(stage: HostStage) -> None:
    worker = stage.worker
    worker.shell(f"kill -STOP {process_id('agent')}")
    found = ask(worker).failing[0]
    assert (found["code"], "a signal has stopped the agent" in found["evidence"]) == ("agent_running", True)
    worker.shell(found["fix"])
    until_well([stage.head, worker])
    worker.shell(f"kill -STOP {process_id('agent')}")
    assert "it continues" in worker.run(["meshray", "up"], deadline_s=REPAIR_S).stderr
    until_well([stage.head, worker])


def test_fix_restores_the_guard(stage: HostStage) -> None:
    next(fault for fault in FAULTS if fault.name == "guard-cannot-be-set").inject(stage)
    try:
        wait_until(lambda: [check["code"] for check in ask(stage.worker).failing] == ["guard"], 20, "no guard")
    finally:
        stage.worker.shell(f"for program in {FIREWALLS}; do umount $program; done")
    # The doctor lets the agent retry what it could not do: then nothing is left to repair.
    repaired = ask(stage.worker, "--fix", "--yes", deadline_s=REPAIR_S)
    assert all("table inet meshray in place" in done for done in repaired.report["repaired"])
    assert not repaired.failing, repaired
    # An agent that was working while the programs came back may have used iptables: it returns to nft at its next
    # check.
    table = ["nft", "list", "table", "inet", "meshray"]
    wait_until(lambda: "drop" in stage.worker.run(table, check=False).stdout, CHECK_INTERVAL_S + 15, "the table of nft")


def test_fix_recreates_an_interface_whose_engine_hangs(stage: HostStage) -> None:
    stage.worker.shell(f"kill -STOP {process_id('engine')}")
    repaired = ask(stage.worker, "--fix", "--yes", deadline_s=REPAIR_S)
    assert repaired.report["repaired"] == ["meshray0 was created again"]
    until_well([stage.head, stage.worker])


def test_fix_restores_the_overlays_route_and_touches_no_other(stage: HostStage) -> None:
    """What the doctor prints for a missing route is pasted, word for word."""
    worker, remover = stage.worker, next(fault for fault in FAULTS if fault.name == "route-removed-again-and-again")

    def others() -> list[str]:
        lines = worker.shell("ip -N -details route show table all").stdout.splitlines()
        return [line for line in lines if "10.99." not in line]

    # As on a machine with a VPN that takes all traffic: none of it may be removed.
    worker.shell("ip route add 0.0.0.0/1 dev eth0; ip route add 128.0.0.0/1 dev eth0")
    try:
        before = others()
        remover.inject(stage)
        try:
            found = wait_until(lambda: [one for one in ask(worker).failing if one["code"] == "overlay_route"], 20, "it")
        finally:
            remover.heal(stage)
        fix = found[0]["fix"].rpartition("then: ")[2]
        assert fix.startswith("ip route replace 10.99.0.0/16 dev meshray0")
        assert "the overlay's own route 10.99.0.0/16 dev meshray0 is missing" in found[0]["evidence"]
        worker.shell(fix)
        assert worker.can_reach(stage.head_ip)
        assert found[0]["repair"] == "routes"
        worker.shell("ip route del 10.99.0.0/16 dev meshray0")
        wait_until(lambda: worker.can_reach(stage.head_ip), 10, "the agent's own repair")
        until_well([stage.head, worker])
        assert others() == before
    finally:
        worker.shell("ip route del 0.0.0.0/1 dev eth0; ip route del 128.0.0.0/1 dev eth0")
