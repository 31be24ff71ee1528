"""What one part of a mesh knows reaches status and doctor everywhere it matters (see `faults_hub.py`)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from meshray.model.node import HUB_FORWARDS, ONE_IDENTITY
from tests.lab.doctoring import Doctor, ask, until_well
from tests.lab.faults import Fault
from tests.lab.faults_hub import FAULTS, HubStage, describe
from tests.lab.world import World

#: After the copy is gone the original gets its connection back, and no node reports a fault.
OVER_S = 60


@pytest.fixture(scope="module")
def stage() -> Iterator[HubStage]:
    with World("doctor-hub") as world:
        stage = HubStage.build(world)
        until_well(stage.cluster.hosts)
        yield stage


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_first_failing_check_is_the_cause(stage: HubStage, fault: Fault[HubStage], doctor: Doctor) -> None:
    doctor.names(fault, stage, stage.cluster.hosts)


def test_a_hub_that_may_not_forward_is_named_with_the_command(stage: HubStage) -> None:
    fault = FAULTS[0]
    try:
        fault.inject(stage)
        for host in (stage.head, stage.w1):
            entry = next(entry for entry in stage.health(host) if entry["code"] == HUB_FORWARDS)
            assert "sysctl -w net.ipv4.conf.meshray0.forwarding=1" in entry["fix"]
            assert entry["fix"].startswith("on head: ") == (host is stage.w1)
        # Consequences are not shown: on w1 nothing else fails.
        failing = ask(stage.w1).failing
        assert {check["code"] for check in failing} == {HUB_FORWARDS}, describe(failing)
    finally:
        fault.heal(stage)
    until_well(stage.cluster.hosts)
    assert stage.w1.can_reach(stage.cluster.ip(stage.w2))


def test_a_cloned_disk_is_reported_on_all_three_and_the_fix_repairs_it(stage: HubStage) -> None:
    up = stage.clone()
    try:
        # A copy that is up before the two have met is reported by its status instead.
        if up.returncode:
            assert (up.returncode, up.json()["error"]["code"]) == (4, "identity_taken_over")
            assert "meshray leave --local" in up.json()["error"]["hint"]
        began = time.monotonic()
        for host in (stage.head, stage.w1, stage.copy):
            host.wait_until(lambda host=host: (ONE_IDENTITY, "w1") in stage.codes(host), 40, "the conflict")  # type: ignore[misc]
            entry = next(one for one in stage.health(host) if one["code"] == ONE_IDENTITY)
            assert entry["node"] == "w1"
            assert "meshray leave --local" in entry["fix"]
        print(f"status on all three: {time.monotonic() - began:.1f} s after up")
        detail = next(entry["text"] for entry in stage.health(stage.head) if entry["code"] == ONE_IDENTITY)
        assert "203.0.113.30" in detail
        assert "203.0.113.50" in detail
        for host in (stage.head, stage.w1, stage.copy):
            first = ask(host).failing[0]
            assert (first["code"], first["node"]) == (ONE_IDENTITY, "w1"), describe([first])
        assert stage.w1.run(["meshray", "up"], check=False).returncode == 4
        # Other nodes are not affected.
        assert ONE_IDENTITY not in {code for code, _ in stage.codes(stage.w2)}
    finally:
        left = stage.copy.run(["meshray", "leave", "--local", "--yes", "--json"], check=False)
    assert left.json() == {"schema": 1, "node": "w1", "unenrolled": False, "local": True}
    until_well(stage.cluster.hosts, deadline_s=OVER_S)
    print(f"well again {time.monotonic() - began:.1f} s after up")
    # The copy becomes a separate node; the original kept its address.
    joined = stage.cluster.meshray(stage.copy, "join", stage.cluster.answers["head"]["token"], "--no-ray")
    assert joined["node"]["ip"] != stage.cluster.ip(stage.w1)
    stage.copy.run(["meshray", "leave", "--yes"])
    assert stage.head.can_reach(stage.cluster.ip(stage.w1))
