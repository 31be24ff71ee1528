"""The answer to probes, and whether this node's Ray counts as missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshray.agent.status.readiness import readiness
from meshray.agent.status.snapshot import expects_ray, own_ray_alive
from meshray.home import Home
from meshray.model.node import Versions
from meshray.raynode.external import OFFERED
from meshray.raynode.supervisor import BACKOFF, RUNNING, WAITING

HOME = Home(Path("/var/lib/meshray"), Path("/run/meshray"))
SEEN = Versions("0.1.0", "2.60.0", "3.11.7")


def sources(
    state: str = "",
    *,
    external: bool = False,
    drained: bool = False,
    failure: str = "",
    error: str = "",
    with_ray: bool = True,
    versions: Versions = SEEN,
    head: Versions | None = SEEN,
) -> Any:
    """Return what the functions read of an agent; without a state it has no Ray."""
    now = SimpleNamespace(state=state, external=external, error=error)
    ray = SimpleNamespace(now=now, failure=failure) if state else None
    mesh_map = SimpleNamespace(head=SimpleNamespace(versions=head) if head is not None else None)
    node = SimpleNamespace(
        home=HOME,
        enrolment=SimpleNamespace(with_ray=with_ray, external=external),
        me=SimpleNamespace(drained=drained),
        map=mesh_map,
    )
    parts = SimpleNamespace(
        ray=ray, no_ray_reason="this mesh has no Ray head yet", versions=versions, ray_table=lambda dashboard: None
    )
    return SimpleNamespace(state=node, parts=parts)


@pytest.mark.parametrize(
    ("agent", "is_up", "ready", "reason"),
    [
        (sources(RUNNING), True, True, "Ray is ALIVE"),
        (sources(RUNNING, drained=True), True, False, "this node is drained"),
        (sources(BACKOFF, failure="no space left"), True, False, "no space left"),
        (sources("starting"), True, False, "Ray is not ALIVE: starting"),
        (sources(WAITING, error="the head's Ray is down"), True, False, "Ray is not ALIVE: the head's Ray is down"),
        (sources(), True, False, "Ray does not run here: this mesh has no Ray head yet"),
        (sources(with_ray=False), True, True, "the overlay works"),
        (sources(with_ray=False), False, False, "the overlay does not work yet"),
        (sources(OFFERED, external=True), True, False, ". /run/meshray/env && ray start"),
        (sources(WAITING, external=True), True, False, "the head's Ray is down"),
        (sources(RUNNING, external=True), True, True, "Ray is ALIVE"),
    ],
)
def test_a_node_is_ready_while_its_ray_is_alive(agent: Any, is_up: bool, ready: bool, reason: str) -> None:
    found = readiness(agent, is_up=is_up)
    assert (found.ready, reason in found.reason) == (ready, True), found


@pytest.mark.parametrize(
    ("agent", "alive"),
    [
        (sources(RUNNING), True),
        (sources(BACKOFF), False),
        (sources(RUNNING, drained=True), None),
        (sources(), None),
        (sources(OFFERED, external=True, versions=Versions("0.1.0")), None),
        (sources(OFFERED, external=True), False),
        (sources(RUNNING, external=True), True),
    ],
)
def test_a_ray_that_was_never_started_is_not_missing(agent: Any, alive: bool | None) -> None:
    assert own_ray_alive(agent) is alive


def test_a_mesh_expects_the_ray_of_another_program_once_it_was_there() -> None:
    assert expects_ray(sources("starting", head=Versions("0.1.0")))
    assert not expects_ray(sources(OFFERED, external=True, head=Versions("0.1.0")))
    assert expects_ray(sources(OFFERED, external=True))
    assert not expects_ray(sources(head=None))
