"""The doctor names what is wrong with a machine: one fault at a time on a mesh without Ray (see `faults_host.py`).

    switch wan 203.0.113.0/24
     ┌──────────┴──────────┐
   head                  worker
203.0.113.10          203.0.113.20
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.faults import Fault
from tests.lab.faults_host import FAULTS, HostStage
from tests.lab.waiting import wait_until
from tests.lab.world import World

#: Ways that a fault had cut must be found again, seconds.
WHOLE_AGAIN_S = 30


@pytest.fixture(scope="module")
def stage() -> Iterator[HostStage]:
    with World("doctor-host") as world:
        yield HostStage.build(world)


def failed(stage: HostStage, node: str) -> list[dict[str, Any]]:
    checks = stage.cluster.meshray(stage.host(node), "doctor", check=False)["checks"]
    return [check for check in checks if check["status"] == "fail"]


def until_whole(stage: HostStage, node: str) -> None:
    def wrong() -> str:
        return "\n".join(f"{check['code']} {check['node']}: {check['evidence']}" for check in failed(stage, node))

    wait_until(lambda: not wrong(), WHOLE_AGAIN_S, f"no failing check on {node}", evidence=wrong)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_first_failing_check_is_the_cause(stage: HostStage, fault: Fault[HostStage]) -> None:
    until_whole(stage, fault.node)
    try:
        fault.inject(stage)
        first, *_ = failed(stage, fault.node)
        assert (first["code"], first["node"]) == (fault.code, fault.node), first
        assert first["evidence"]
        assert first["fix"]
    finally:
        fault.heal(stage)


def test_at_the_end_all_is_well(stage: HostStage) -> None:
    for node in ("head", "worker"):
        until_whole(stage, node)
