"""A machine that joins with `--no-ray` to look: the page and every port of the mesh from there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.host import Host
from tests.web.mesh import PORT, WebMesh
from tests.web.sessions import enter, forward, using, web

DASHBOARD = 8265


@pytest.fixture(scope="module")
def visitor(mesh: WebMesh) -> Iterator[Host]:
    """Yield a node without Ray; it leaves the mesh afterwards."""
    host = mesh.world.host("visitor", mesh.wan, "192.88.99.40")
    token = str(mesh.cluster.answers[mesh.head.name]["token"])
    mesh.cluster.meshray(host, "join", "--no-ray", token)
    yield host
    mesh.cluster.meshray(host, "leave", "--yes")


def test_it_forwards_the_heads_port_and_a_workers(mesh: WebMesh, visitor: Host) -> None:
    with forward(visitor, str(DASHBOARD)) as forwarded:
        assert (forwarded["address"], forwarded["node"]) == (f"127.0.0.1:{DASHBOARD}", "head")
        assert "Ray Dashboard" in mesh.get(visitor, f"http://127.0.0.1:{DASHBOARD}/")
    # Ray's metrics of a worker.
    with forward(visitor, "20106:0", "office") as forwarded:
        assert "# HELP" in mesh.get(visitor, f"http://{forwarded['address']}/metrics")


def test_its_link_opens_rays_dashboard(mesh: WebMesh, visitor: Host) -> None:
    inside = f"https://{mesh.cluster.ip(mesh.head)}:{PORT}"
    assert "visitor" in mesh.get(visitor, f"{inside}/", "-k")
    assert mesh.status_of(visitor, f"{inside}/ray/") == 401
    opened = web(visitor, "open")
    assert opened["level"] == "use"
    address = str(opened["url"]).partition("/enter#")[0]
    cookie = enter(visitor, str(opened["url"]))
    assert "Ray Dashboard" in mesh.get(visitor, f"{address}/ray/", *using(cookie))
