"""What creates a topology's containers, in a host of the lab with an engine, and the containers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.containerlab import runner
from tests.containerlab.topology import Topology
from tests.lab.host import Host, Result

#: The timeout of a command unless another is given, seconds.
COMMAND_S = 60
#: The time to create and connect the containers of a file, seconds.
DEPLOY_S = 240
#: Where containerlab writes, which is beside the file by default; and it asks the internet for a newer version.
SETTINGS = {"CLAB_LABDIR_BASE": "/tmp", "CLAB_VERSION_CHECK": "disable"}


@dataclass(frozen=True)
class Containerlab:
    """containerlab itself. It also writes to /etc and /run, which are the host's own."""

    host: Host

    def deploy(self, path: Path, topology: Topology) -> None:
        """Create the containers and their links."""
        self._run("deploy", "--topo", str(path))

    def destroy(self, path: Path, topology: Topology) -> None:
        """Remove all of it, containerlab's own folder included."""
        self._run("destroy", "--topo", str(path), "--cleanup")

    def _run(self, *words: str) -> None:
        self.host.run(["containerlab", *words], env=SETTINGS, deadline_s=DEPLOY_S)


@dataclass(frozen=True)
class Runner:
    """`tests.containerlab.runner`."""

    host: Host

    def deploy(self, path: Path, topology: Topology) -> None:
        """Create the containers and their links."""
        runner.deploy(topology, self._run)

    def destroy(self, path: Path, topology: Topology) -> None:
        """Remove all of it."""
        runner.destroy(topology, self._run)

    def _run(self, words: Sequence[str]) -> str:
        return self.host.run(words).stdout


#: Creates the containers of a file and removes them.
Deployer = Containerlab | Runner


@dataclass(frozen=True)
class Container:
    """A node of a deployed topology."""

    host: Host
    name: str

    def run(self, *words: str, check: bool = True, deadline_s: float = COMMAND_S) -> Result:
        """Run a command in it."""
        return self.host.run(["docker", "exec", self.name, *words], check=check, deadline_s=deadline_s)

    def meshray(self, *words: str, check: bool = True, deadline_s: float = COMMAND_S) -> dict[str, Any]:
        """Return the answer of `meshray COMMAND --json …`."""
        command, *rest = words
        done = self.run("meshray", command, "--json", *rest, check=check, deadline_s=deadline_s)
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    def can_reach(self, address: str) -> bool:
        """Return whether one of two pings comes back."""
        ping = ("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", address)
        return self.run(*ping, check=False).returncode == 0
