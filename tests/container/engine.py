"""A Docker engine of the tests' own, in a host of a world: its images, containers and networks end with it.

engine = DockerEngine.start(host)
engine.docker("run", "--rm", "base", "id")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.host import Host, HostProcess, Result
from tests.lab.leftovers import remove_cgroups

#: The time until the engine has started.
UP_S = 60


class DockerEngine:
    """dockerd in a host."""

    def __init__(self, host: Host, process: HostProcess, group: str) -> None:
        self.host = host
        self._process = process
        self._group = group

    @classmethod
    def start(cls, host: Host, name: str, *options: str) -> DockerEngine:
        """Start the engine; return when it answers. Its files are in the host's own memory file system."""
        # Docker would keep its control groups under /docker, together with those of the machine's own engine.
        words = ["dockerd", "--host=unix:///run/docker.sock", f"--cgroup-parent=/{name}", "--pidfile=/run/docker.pid"]
        engine = cls(host, host.popen([*words, *options], name="dockerd"), name)
        host.environment["DOCKER_HOST"] = "unix:///run/docker.sock"
        host.wait_until(engine._answers, UP_S, "the Docker engine")
        return engine

    def _answers(self) -> bool:
        assert self._process.returncode is None, self._process.output
        return self.host.run(["docker", "version"], check=False).returncode == 0

    def docker(self, *words: str | Path, check: bool = True, deadline_s: float = 120) -> Result:
        """Run the docker program."""
        return self.host.run(["docker", *words], check=check, deadline_s=deadline_s)

    def inspect(self, *words: str) -> Any:
        """Return the output of `docker … inspect`."""
        return self.docker(*words).json()[0]

    def left(self) -> dict[str, Sequence[str]]:
        """Return what is in it beside images: containers, volumes, networks that it did not begin with."""
        listed = {
            "containers": ("ps", "--all", "--format={{.Names}}"),
            "volumes": ("volume", "ls", "--format={{.Name}}"),
            "networks": ("network", "ls", "--filter=type=custom", "--format={{.Name}}"),
        }
        return {kind: sorted(self.docker(*words).stdout.split()) for kind, words in listed.items()}

    def stop(self) -> None:
        """End it with all of its containers, and remove the control groups, which belong to the whole machine."""
        for container in self.docker("ps", "--quiet", check=False).stdout.split():
            self.docker("kill", container, check=False)
        self._process.stop(30)
        remove_cgroups(self._group)
