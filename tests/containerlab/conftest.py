"""An engine in a host of the lab, with the nodes' image, and what deploys the topologies there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.container.base import build_node
from tests.container.engine import DockerEngine
from tests.containerlab.machine import Containerlab, Deployer, Runner
from tests.lab.host import Host
from tests.lab.leftovers import RunId
from tests.lab.world import World

#: The image that the files name. Ray runs as root in it, as its files belong to root.
IMAGE = "meshray.test/node:1"
USER = "RAY_UID=0"


@pytest.fixture(scope="package")
def engine_host() -> Iterator[Host]:
    """Return a host with an engine that has the image."""
    with World("clab") as world:
        host = world.host("dock", world.switch("wan", "198.51.100.0/24"), "198.51.100.20")
        # The containers have no network but the links of their topology.
        engine = DockerEngine.start(host, f"{RunId.mine()}-clab", "--iptables=false", "--bridge=none")
        try:
            build_node(engine.docker, host.path("/tmp/base.tar"), "/tmp/base.tar", IMAGE, USER)
            yield host
        finally:
            engine.stop()


@pytest.fixture(scope="package")
def deployer(engine_host: Host) -> Deployer:
    """Return what deploys the topologies: containerlab if it is installed, else the runner."""
    return Containerlab(engine_host) if shutil.which("containerlab") else Runner(engine_host)
