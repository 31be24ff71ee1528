"""Ray's own dashboard and a program of Ray, from a browser and a terminal on a machine outside the mesh."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.lab.host import HostProcess
from tests.web.browser import chromium
from tests.web.mesh import WebMesh
from tests.web.sessions import forward_with_pass, invite

PORT = 8371
#: An actor on the node home serves HTTP there.
PROGRAM = f"""
import http.server, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init("auto")
node = next(n for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == "ADDRESS")

@ray.remote(num_cpus=0)
class Program:
    def serve(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.end_headers()
                self.wfile.write(f"served {{self.path}}".encode())
        http.server.ThreadingHTTPServer(("0.0.0.0", {PORT}), Handler).serve_forever()

place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
ray.get(Program.options(scheduling_strategy=place).remote().serve.remote())
"""


@pytest.fixture(scope="module")
def program(mesh: WebMesh) -> Iterator[HostProcess]:
    code = PROGRAM.replace("ADDRESS", str(mesh.cluster.ip(mesh.host("home"))))
    process = mesh.head.popen(["meshray", "run", "--", sys.executable, "-c", code], name="program")
    url = f"http://{mesh.cluster.ip(mesh.host('home'))}:{PORT}/"
    mesh.world.wait_until(lambda: mesh.status_of(mesh.head, url) == 200, 90, "the program")
    yield process
    process.stop()


@pytest.fixture(scope="module")
def page(mesh: WebMesh) -> Iterator[Page]:
    """Yield a page of a browser on the laptop, with a session."""
    with chromium(mesh.laptop) as browser:
        opened = browser.new_page(ignore_https_errors=True)
        opened.goto(invite(mesh, "proxy-browser", "--use"))
        opened.wait_for_url(f"{mesh.url}/", timeout=30_000)
        yield opened


def test_rays_dashboard_lists_the_nodes_without_a_token_prompt(mesh: WebMesh, page: Page) -> None:
    failed: list[str] = []
    page.on("response", lambda answer: failed.append(answer.url) if answer.status in (401, 403) else None)
    page.goto(f"{mesh.url}/ray/#/cluster")
    for host in mesh.cluster.hosts:
        page.get_by_text(str(mesh.cluster.ip(host))).first.wait_for(timeout=60_000)
    assert page.get_by_role("dialog").count() == 0
    assert "authentication token" not in page.content()
    assert failed == []


def test_a_program_of_ray_is_reached_on_its_node_and_on_any(mesh: WebMesh, page: Page, program: HostProcess) -> None:
    for who in ("home", "any", str(mesh.cluster.ip(mesh.host("home")))):

        def answers(who: str = who) -> bool:
            found = page.goto(f"{mesh.url}/serve/{who}/{PORT}/a?b=1")
            return found is not None and found.status == 200

        # The node reports the new port within seconds.
        mesh.world.wait_until(answers, 20, f"an answer through /serve/{who}/")
        assert "served /a?b=1" in page.content()
    refused = page.goto(f"{mesh.url}/serve/office/{PORT}/")
    assert refused is not None
    assert refused.status == 404


def test_a_terminal_on_the_laptop_forwards_a_port(mesh: WebMesh, program: HostProcess) -> None:
    with forward_with_pass(mesh, mesh.laptop, "proxy-terminal", f"{PORT}:18371", "home") as forwarded:
        assert forwarded["node"] == "home"
        assert mesh.get(mesh.laptop, "http://127.0.0.1:18371/x") == "served /x"
