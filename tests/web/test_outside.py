"""A machine outside the mesh: without a pass it gets nothing, and the page in use opens no port to it."""

from __future__ import annotations

from tests.lab.scan import open_ports
from tests.web.browser import chromium
from tests.web.mesh import PORT, WebMesh
from tests.web.sessions import forward, forward_with_pass, invite

DASHBOARD = 8265


def test_the_laptop_is_not_a_node(mesh: WebMesh) -> None:
    """Check the network itself: the laptop reaches the coordinator's port, and no node's overlay address."""
    assert mesh.status_of(mesh.laptop, f"{mesh.url}/v1/hello") == 200
    assert not mesh.laptop.can_reach(mesh.cluster.ip(mesh.head))
    with chromium(mesh.laptop) as browser:
        answer = browser.new_page(ignore_https_errors=True).goto(f"{mesh.url}/v1/hello")
        assert answer is not None
        assert answer.status == 200


def test_the_page_in_use_leaves_one_port_open(mesh: WebMesh) -> None:
    """Scan all ports while a browser has a live page and Ray's dashboard open, and two ports are forwarded."""
    laptop, home = mesh.laptop, mesh.host("home")
    with (
        forward_with_pass(mesh, laptop, "scan-forward", f"{DASHBOARD}:0") as from_laptop,
        forward(home, f"{DASHBOARD}:0") as from_home,
        chromium(laptop) as browser,
    ):
        context = browser.new_context(ignore_https_errors=True)
        live, dashboard = context.new_page(), context.new_page()
        live.goto(invite(mesh, "scan-browser", "--use"))
        live.wait_for_selector('#live[data-state="live"]')
        dashboard.goto(f"{mesh.url}/ray/#/cluster")
        dashboard.get_by_text(mesh.cluster.ip(home)).first.wait_for(timeout=60_000)
        for host, forwarded in ((laptop, from_laptop), (home, from_home)):
            assert "Ray Dashboard" in mesh.get(host, f"http://{forwarded['address']}/")

        # The laptop's router is a stranger in the head's network, each worker's router one in the worker's.
        assert open_ports(mesh.routers["laptop"].host, str(mesh.head.address)) == [{PORT}]
        for name in ("home", "office"):
            assert open_ports(mesh.routers[name].host, str(mesh.host(name).address)) == [set()]

        assert live.get_attribute("#live", "data-state") == "live"
        assert "Ray Dashboard" in mesh.get(laptop, f"http://{from_laptop['address']}/")
