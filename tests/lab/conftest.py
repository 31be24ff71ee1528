"""The fixtures that several lab tests share: one cluster for all tests that do not end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.doctoring import Doctor
from tests.lab.topologies import OneOfEach, one_of_each
from tests.lab.world import World
from tests.scheduling import OF_ONE_CLUSTER


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the modules of the one cluster next to each other; the tiers are sorted afterwards and keep this order."""
    order = {name: number for number, name in enumerate(OF_ONE_CLUSTER, start=1)}
    items.sort(key=lambda item: order.get(item.path.stem, 0) if item.path.parent.name == "lab" else 0)


@pytest.fixture(scope="session")
def ground() -> Iterator[tuple[World, OneOfEach]]:
    """Yield the world of the one cluster."""
    with World("cluster") as world:
        yield world, one_of_each(world)


@pytest.fixture(scope="session")
def cluster(ground: tuple[World, OneOfEach]) -> Cluster:
    """Return a head, a worker that drops all inbound traffic, and a worker behind a NAT that joined through sudo."""
    _, hosts = ground
    return Cluster.start(hosts.head, hosts.workers, through_sudo=[hosts.nested])


@pytest.fixture
def doctor(record_property: Callable[[str, object], None]) -> Doctor:
    """Return a doctor whose correct answers are counted."""
    return Doctor(record_property)
