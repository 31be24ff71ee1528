"""A machine that is no node: without a pass it gets nothing."""

from __future__ import annotations

from tests.web.browser import chromium
from tests.web.mesh import WebMesh


def test_the_laptop_is_not_a_node(mesh: WebMesh) -> None:
    """Check the network itself: the laptop reaches the coordinator's port, and no node's overlay address."""
    assert mesh.status_of(mesh.laptop, f"{mesh.url}/v1/hello") == 200
    assert not mesh.laptop.can_reach(mesh.cluster.ip(mesh.head))
    with chromium(mesh.laptop) as browser:
        answer = browser.new_page(ignore_https_errors=True).goto(f"{mesh.url}/v1/hello")
        assert answer is not None
        assert answer.status == 200
