"""What several lab tests start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.topologies import one_of_each
from tests.lab.world import World


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A head, a worker that drops all inbound traffic, a worker behind a NAT that was joined through sudo."""
    with World(request.module.__name__.rpartition(".")[2].replace("_", "-")) as world:
        hosts = one_of_each(world)
        yield Cluster.start(hosts.head, hosts.workers, through_sudo=[hosts.nested])
