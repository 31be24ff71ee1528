"""The Compose files of containers/, brought up as containers/README.md says: a worker, and a head.

The worker joins the head on the other machine. A machine far away joins the head in the container, through the ports
that Docker publishes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.container.base import OFFLINE
from tests.container.conftest import RAY_ARGS, Dock
from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY, Result

#: The time to build an image and to start a container, seconds.
BUILD_S = 400
READY_S = 150
#: More than the time to end that the files give a container.
ENDED_S = 120


@dataclass(frozen=True)
class Project:
    """One Compose file with one service, in a project that is called after it.

    Attributes:
        settings: the variables that the file reads.
    """

    dock: Dock
    file: str
    service: str
    settings: dict[str, str]

    def compose(self, *words: str, check: bool = True, deadline_s: float = 60) -> Result:
        """Run docker-compose on the file."""
        files = ["--file", str(REPOSITORY / "containers" / self.file), "--file", self._offline]
        argv = ["docker-compose", "--project-name", self.service, *files, *words]
        return self.dock.host.run(argv, env=self.settings, check=check, deadline_s=deadline_s)

    def exec(self, *words: str, check: bool = True, deadline_s: float = 60) -> Result:
        """Run a command in the container; without a terminal, which a test does not have."""
        return self.compose("exec", "-T", self.service, *words, check=check, deadline_s=deadline_s)

    def wait_until_ready(self) -> None:
        """Wait until Ray in the container is ALIVE."""
        self.dock.host.wait_until(self._is_ready, READY_S, f"Ray of {self.file}")

    def _is_ready(self) -> bool:
        return self.exec("meshray", "ready", check=False).returncode == 0

    def write_offline(self) -> None:
        """Write the additions for a build without registries: the clone has the engine, and the base all wheels."""
        arguments = ["GO=base", "RAY_UID=0", *OFFLINE]
        added = {"services": {self.service: {"build": {"args": dict(word.split("=", 1) for word in arguments)}}}}
        self.dock.host.path(self._offline).write_text(json.dumps(added))

    @property
    def _offline(self) -> str:
        return f"/tmp/{self.service}.offline.json"


@contextmanager
def brought_up(project: Project) -> Iterator[Project]:
    """Bring it up; at the end nothing of it is left."""
    before = project.dock.engine.left()
    project.write_offline()
    try:
        project.compose("up", "--build", "-d", deadline_s=BUILD_S)
        project.wait_until_ready()
        yield project
    except BaseException:
        print(project.compose("logs", "--no-color", check=False).stdout)
        raise
    finally:
        project.compose("down", "--volumes", check=False, deadline_s=ENDED_S)
    assert project.dock.engine.left() == before


@pytest.fixture(scope="module")
def settings(dock: Dock) -> dict[str, str]:
    """Return the variables of both files. The image's PATH contains meshray, as that of rayproject/ray does."""
    dock.host.run(["docker", "build", "--quiet", "--tag=with-path", "-"], stdin=f"FROM base\nENV PATH={dock.path}\n")
    return {"RAY_IMAGE": "with-path", "SHM_SIZE": "300mb"}


def exchange(cluster: Cluster, names: Sequence[str]) -> None:
    """Move an object in both directions between these two nodes."""
    options = (f"--nodes={len(names)}", "--mebibytes=8", "--json")
    done = cluster.job("python", str(REPOSITORY / "tests/lab/pairs.py"), *options).last_json()
    assert sorted(done["nodes"]) == sorted(names)
    assert len(done["objects"]) == len(names) * (len(names) - 1)
    assert all(one["intact"] for one in done["objects"])


def test_the_worker_joins_comes_back_with_its_identity_and_leaves(dock: Dock, settings: dict[str, str]) -> None:
    with brought_up(Project(dock, "compose.yml", "worker", {**settings, "MESHRAY_TOKEN": dock.token})) as worker:
        exchange(dock.cluster, ["head", "laptop"])
        before = worker.exec("meshray", "status", "--json").json()
        assert before["self"] == "laptop"
        worker.compose("restart", deadline_s=ENDED_S)
        worker.wait_until_ready()
        after = worker.exec("meshray", "status", "--json").json()
        assert [(node["name"], node["ip"]) for node in after["nodes"]] == [
            (node["name"], node["ip"]) for node in before["nodes"]
        ]
        exchange(dock.cluster, ["head", "laptop"])
        assert worker.exec("meshray", "run", "--", "ray", "status").stdout.count("1 node_") == 2
        worker.exec("meshray", "leave", "--yes", deadline_s=ENDED_S)
    assert [node["name"] for node in dock.nodes()] == ["head"]


def test_a_machine_far_away_joins_the_head(dock: Dock, settings: dict[str, str]) -> None:
    advertised = {**settings, "ADVERTISE": str(dock.host.address)}
    with brought_up(Project(dock, "compose.head.yml", "head", advertised)) as head:
        token = head.exec("meshray", "token", "create").stdout.strip()
        far = Cluster(dock.far, ())
        answer = far.meshray(dock.far, "join", token, "--", *RAY_ARGS)
        try:
            assert answer["ray"] == {"alive": True, "nodes": 2}
            exchange(far, ["far", "head"])
            nodes = head.exec("meshray", "status", "--json").json()["nodes"]
            assert {node["name"]: node["online"] for node in nodes} == {"head": True, "far": True}
        finally:
            dock.far.run(["meshray", "leave", "--yes"], check=False, deadline_s=ENDED_S)


def test_the_head_needs_the_address_at_which_it_is_reached(dock: Dock, settings: dict[str, str]) -> None:
    head = Project(dock, "compose.head.yml", "head", settings)
    head.write_offline()
    refused = head.compose("up", "-d", check=False)
    assert refused.returncode != 0
    assert "the address at which the others reach this machine" in refused.stderr


def test_the_additions_for_gpus_select_the_gpu_image_and_all_gpus(dock: Dock) -> None:
    files = [word for name in ("compose.yml", "compose.nvidia.yml") for word in ("--file", f"containers/{name}")]
    shown = dock.host.run(["docker-compose", *files, "config"], cwd=REPOSITORY).stdout
    assert "BASE: rayproject/ray:2.60.0-py312-gpu" in shown
    assert "count: all" in shown
