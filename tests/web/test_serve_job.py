"""A Serve job, written as tutorials write it: its output is read on every node."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.lab.host import REPOSITORY, HostProcess
from tests.web.mesh import WebMesh

PORT = 8350
#: Ray installs the job's packages on three nodes first.
UP_S = 180


@pytest.fixture(scope="module")
def job(mesh: WebMesh) -> Iterator[HostProcess]:
    """Submit the job, and wait until it has answered all requests."""
    submit = str(REPOSITORY / "docs/examples/requests/submit.py")
    process = mesh.head.popen(["meshray", "run", "--", sys.executable, submit, "--keep", "120"], name="job")
    mesh.world.wait_until(lambda: "60 answers" in process.output or process.returncode is not None, UP_S, "the job")
    assert process.returncode is None, process.output
    yield process
    assert process.wait(180) == 0, process.output


def test_every_node_answers_at_the_port(mesh: WebMesh, job: HostProcess) -> None:
    for host in mesh.cluster.hosts:
        for address in ("127.0.0.1", mesh.cluster.ip(host)):
            answer = json.loads(mesh.get(host, f"http://{address}:{PORT}/output"))
            assert answer["count"] == 60
            assert answer["nodes"] == sorted(mesh.names)


def test_the_port_is_closed_outside(mesh: WebMesh, job: HostProcess) -> None:
    assert mesh.status_of(mesh.laptop, f"http://{mesh.head.address}:{PORT}/output") == 0


def test_the_totals_are_those_of_ray(mesh: WebMesh) -> None:
    totals = mesh.cluster.meshray(mesh.head, "status")["totals"]
    printed = mesh.cluster.job(sys.executable, str(REPOSITORY / "docs/examples/totals.py")).stdout
    assert f"CPU {totals['CPU']:.4g}, " in printed.splitlines()[-1]
