"""What deploys the topologies: containerlab where it is installed, else the runner with an engine in a lab host."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.container.base import build_node
from tests.container.engine import DockerEngine
from tests.containerlab.machine import Containerlab, Deployer, Runner, ThisMachine
from tests.lab.leftovers import RunId
from tests.lab.world import World

#: The image that the files name. Ray runs as root in it, as its files belong to root.
IMAGE = "meshray.test/node:1"
USER = "RAY_UID=0"
#: The time to import the base and to build the image, seconds.
BUILD_S = 300


@pytest.fixture(scope="session")
def deployer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployer]:
    """Return what deploys topologies; their image is built."""
    if shutil.which("containerlab"):
        with _this_machine(tmp_path_factory.mktemp("containerlab")) as machine:
            yield Containerlab(machine)
        return
    with World("clab") as world:
        host = world.host("dock", world.switch("wan", "198.51.100.0/24"), "198.51.100.20")
        # The containers have no network but the links of their topology.
        engine = DockerEngine.start(host, f"{RunId.mine()}-clab", "--iptables=false", "--bridge=none")
        try:
            build_node(engine.docker, host.path("/tmp/base.tar"), "/tmp/base.tar", IMAGE, USER)
            yield Runner(host)
        finally:
            engine.stop()


@contextmanager
def _this_machine(folder: Path) -> Iterator[ThisMachine]:
    machine = ThisMachine(folder)
    tar = folder / "base.tar"
    try:
        build_node(lambda *words: machine.run(["docker", *words], deadline_s=BUILD_S), tar, tar, IMAGE, USER)
        yield machine
    finally:
        machine.run(["docker", "image", "rm", "--force", IMAGE, "base"], check=False)
