"""One world for the whole tier.

            switch wan 203.0.113.0/24
      ┌────────────────┼────────────────┐
    head              far             dock         a Docker engine of its own
203.0.113.10      203.0.113.30    203.0.113.20
                              ┌─────────┴─────────┐
                         bridge red          bridge blue       Docker lets nothing through between the two
                              │                   │
                         container           container
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.container.base import OFFLINE, write_base
from tests.container.engine import DockerEngine
from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY, Host, Result
from tests.lab.leftovers import RunId
from tests.lab.world import World

#: Small nodes start faster.
RAY_ARGS = ("--num-cpus=1", "--object-store-memory=150000000")
BRIDGES = ("red", "blue")


@dataclass(frozen=True)
class Dock:
    """The environment that all tests share.

    Attributes:
        head, far: hosts without an engine; only the head has a node.
        path: the PATH on which the base image's Python installs programs.
        token: the token for nodes that join.
    """

    world: World
    head: Host
    far: Host
    host: Host
    engine: DockerEngine
    cluster: Cluster
    path: str

    @property
    def token(self) -> str:
        """Return a token for any number of nodes."""
        return str(self.cluster.answers[self.head.name]["token"])

    def meshray(self, home: str, *words: str, check: bool = True, stdin: str = "") -> Result:
        """Run a command of the user whose node is in a container."""
        return self.host.run(
            ["meshray", *words], env={"MESHRAY_HOME": f"/root/{home}"}, check=check, stdin=stdin, deadline_s=150
        )

    def nodes(self) -> list[dict[str, Any]]:
        """Return the head's list of nodes."""
        listed = self.head.run(["meshray", "node", "list", "--json"]).json()["nodes"]
        assert isinstance(listed, list)
        return listed


@pytest.fixture(scope="package")
def dock() -> Iterator[Dock]:
    """Create head and engine, the base image, and the worker's image."""
    with World("dock") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        host = world.host("dock", wan, "203.0.113.20")
        far = world.host("far", wan, "203.0.113.30")
        engine = DockerEngine.start(host, f"{RunId.mine()}-dock", "--no-new-privileges")
        try:
            base = host.path("/tmp/base.tar")
            path = write_base(base)
            engine.docker("import", "/tmp/base.tar", "base")
            base.unlink()
            for name in BRIDGES:
                engine.docker("network", "create", name)
            yield Dock(world, head, far, host, engine, Cluster.start(head, [], ray_args=RAY_ARGS), path)
        finally:
            engine.stop()


@pytest.fixture(scope="package")
def worker_image(dock: Dock) -> str:
    """Build containers/Dockerfile from the local base."""
    arguments = ["BASE=base", "GO=base", "RAY_UID=0", *OFFLINE]
    words = [word for argument in arguments for word in ("--build-arg", argument)]
    file = REPOSITORY / "containers/Dockerfile"
    dock.engine.docker("build", "--quiet", "--network=none", *words, "--file", file, "--tag=worker", REPOSITORY)
    return "worker"


@pytest.fixture(scope="package")
def bad_images(dock: Dock) -> None:
    """Build ``shell``: only a shell; ``plain``: the base without its Ray."""
    dock.host.shell("mkdir -p /tmp/shell/usr && cd /tmp/shell && ln -s usr/bin bin && tar cf /tmp/shell.tar .")
    dock.engine.docker("import", "/tmp/shell.tar", "shell")
    file = "FROM base\nRUN python -m pip uninstall --quiet --yes --break-system-packages ray\n"
    dock.host.run(["docker", "build", "--quiet", "--network=none", "--tag=plain", "-"], stdin=file)
