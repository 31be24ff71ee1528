"""The machine on which a topology's containers run: a host of the lab with an engine of its own, or this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.containerlab import runner
from tests.containerlab.topology import Topology
from tests.lab.host import CommandError, Result

#: The timeout of a command unless another is given, seconds.
COMMAND_S = 60
#: The time to create and connect the containers of a file, seconds.
DEPLOY_S = 240


class Machine(Protocol):
    """Where docker runs. `tests.lab.host.Host` is one."""

    def run(
        self, argv: Sequence[str | Path], *, check: bool = True, deadline_s: float = COMMAND_S, stdin: str = ""
    ) -> Result:
        """Run a command to its end; raise CommandError if it fails (with `check`) or does not end in time."""


@dataclass(frozen=True)
class ThisMachine:
    """The machine itself, with its own engine.

    Attributes:
        folder: the working folder; containerlab writes there.
    """

    folder: Path

    def run(
        self, argv: Sequence[str | Path], *, check: bool = True, deadline_s: float = COMMAND_S, stdin: str = ""
    ) -> Result:
        """Run a command to its end; see `Machine.run`."""
        try:
            done = subprocess.run(
                [str(word) for word in argv],
                cwd=self.folder,
                input=stdin,
                capture_output=True,
                text=True,
                check=False,
                timeout=deadline_s,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"{argv}: not done after {deadline_s:g} s") from error
        if check and done.returncode:
            raise CommandError(f"{argv}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return Result(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Containerlab:
    """The real containerlab."""

    machine: Machine

    def deploy(self, path: Path, topology: Topology) -> None:
        """Create the containers and their links."""
        self.machine.run(["containerlab", "deploy", "--topo", path], deadline_s=DEPLOY_S)

    def destroy(self, path: Path, topology: Topology) -> None:
        """Remove all of it, containerlab's own folder included."""
        self.machine.run(["containerlab", "destroy", "--topo", path, "--cleanup"], deadline_s=DEPLOY_S)


@dataclass(frozen=True)
class Runner:
    """`tests.containerlab.runner`."""

    machine: Machine

    def deploy(self, path: Path, topology: Topology) -> None:
        """Create the containers and their links."""
        runner.deploy(topology, self._run)

    def destroy(self, path: Path, topology: Topology) -> None:
        """Remove all of it."""
        runner.destroy(topology, self._run)

    def _run(self, words: Sequence[str]) -> str:
        return self.machine.run(words).stdout


#: Creates the containers of a file and removes them.
Deployer = Containerlab | Runner


@dataclass(frozen=True)
class Container:
    """A node of a deployed topology."""

    machine: Machine
    name: str

    def run(self, *words: str, check: bool = True, deadline_s: float = COMMAND_S) -> Result:
        """Run a command in it."""
        return self.machine.run(["docker", "exec", self.name, *words], check=check, deadline_s=deadline_s)

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
