"""A Serve job, written as tutorials write it: its output is read on every node."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.lab.host import REPOSITORY, HostProcess
from tests.web.browser import chromium
from tests.web.mesh import WebMesh
from tests.web.sessions import enter, forward, forward_with_pass, invite, using, web

PORT = 8350
#: Ray installs the job's packages on three nodes first.
UP_S = 180


@pytest.fixture(scope="module")
def job(mesh: WebMesh) -> Iterator[HostProcess]:
    """Submit the job, and wait until it has answered all requests."""
    submit = str(REPOSITORY / "docs/examples/requests/submit.py")
    process = mesh.head.popen(["meshray", "run", "--", sys.executable, submit, "--keep", "150"], name="job")
    mesh.world.wait_until(lambda: "60 answers" in process.output or process.returncode is not None, UP_S, "the job")
    assert process.returncode is None, process.output
    yield process
    assert process.wait(210) == 0, process.output


def assert_output(mesh: WebMesh, text: str) -> None:
    """Check that all requests were answered, by all nodes."""
    output = json.loads(text)
    assert output["count"] == len(output["answers"]) == 60
    assert output["nodes"] == sorted(mesh.names)
    assert output["served_by"] in mesh.names


def test_every_node_answers_at_the_port(mesh: WebMesh, job: HostProcess) -> None:
    for host in mesh.cluster.hosts:
        for address in ("127.0.0.1", mesh.cluster.ip(host)):
            assert_output(mesh, mesh.get(host, f"http://{address}:{PORT}/output"))


def test_every_nodes_own_link_reads_it_through_the_page(mesh: WebMesh, job: HostProcess) -> None:
    for host in mesh.cluster.hosts:
        url = str(web(host, "open")["url"])
        cookie, address = enter(host, url), url.partition("/enter#")[0]
        for who in ("office", "any"):
            assert_output(mesh, mesh.get(host, f"{address}/serve/{who}/{PORT}/output", *using(cookie)))


def test_a_pass_reads_it_on_a_laptop_outside_the_mesh(mesh: WebMesh, job: HostProcess) -> None:
    """Check the least pass, which may only read: from a terminal, and as a user sees it in a browser."""
    cookie = enter(mesh.laptop, invite(mesh, "serve-terminal"))
    for who in (*mesh.names, "any"):
        assert_output(mesh, mesh.get(mesh.laptop, f"{mesh.url}/serve/{who}/{PORT}/output", *using(cookie)))
    with chromium(mesh.laptop) as browser:
        page = browser.new_page(ignore_https_errors=True)
        page.goto(invite(mesh, "serve-browser"))
        page.wait_for_url(f"{mesh.url}/", timeout=30_000)
        page.goto(f"{mesh.url}/serve/any/{PORT}/output")
        assert_output(mesh, page.inner_text("body"))


def test_the_laptop_and_a_worker_forward_the_port(mesh: WebMesh, job: HostProcess) -> None:
    with forward_with_pass(mesh, mesh.laptop, "serve-forward", str(PORT)) as forwarded:
        assert (forwarded["node"], forwarded["port"]) == ("head", PORT)
        assert_output(mesh, mesh.get(mesh.laptop, f"http://127.0.0.1:{PORT}/output"))
    home = mesh.host("home")
    with forward(home, f"{PORT}:0", "office") as forwarded:
        assert forwarded["node"] == "office"
        assert_output(mesh, mesh.get(home, f"http://{forwarded['address']}/output"))


def test_the_port_is_closed_outside(mesh: WebMesh, job: HostProcess) -> None:
    assert mesh.status_of(mesh.laptop, f"http://{mesh.head.address}:{PORT}/output") == 0


def test_the_totals_are_those_of_ray(mesh: WebMesh) -> None:
    totals = mesh.cluster.meshray(mesh.head, "status")["totals"]
    printed = mesh.cluster.job(sys.executable, str(REPOSITORY / "docs/examples/totals.py")).stdout
    assert f"CPU {totals['CPU']:.4g}, " in printed.splitlines()[-1]
