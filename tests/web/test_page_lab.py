"""The page of a real mesh, in a browser on a machine outside the mesh."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser import accessibility_faults, chromium
from tests.web.mesh import WebMesh

SIZES = ((1440, 900), (390, 844))
#: The page shows another kind of path within this time after the agents notice it, milliseconds.
CHANGED_MS = 10_000


@pytest.fixture(scope="module")
def page(mesh: WebMesh) -> Iterator[Page]:
    """Yield a page on the laptop, with the session of a pass that may only read."""
    words = ["meshray", "web", "invite", "page-lab", "--host", str(mesh.head.address), "--json"]
    url = mesh.head.run(words).json()["url"]
    with chromium(mesh.laptop) as browser:
        opened = browser.new_page(ignore_https_errors=True)
        opened.goto(url)
        opened.wait_for_url(f"{mesh.url}/", timeout=30_000)
        yield opened


def test_the_map_the_table_and_the_matrix_show_every_node(mesh: WebMesh, page: Page) -> None:
    page.goto(f"{mesh.url}/")
    for name in mesh.names:
        expect(page.locator("#map").get_by_text(name, exact=True)).to_be_visible()
        expect(page.locator("#node-table").get_by_role("link", name=name, exact=True)).to_be_visible()
    expect(page.locator("#summary")).to_contain_text("3 direct", timeout=20_000)
    page.goto(f"{mesh.url}/matrix")
    for name in mesh.names:
        expect(page.get_by_role("rowheader").filter(has_text=name)).to_be_visible()
    page.goto(f"{mesh.url}/nodes/home")
    expect(page.locator("#node-ray")).to_contain_text("CPU", timeout=20_000)


def test_a_lost_direct_path_is_shown_without_a_reload(mesh: WebMesh, page: Page) -> None:
    page.goto(f"{mesh.url}/")
    expect(page.locator("#summary")).to_contain_text("3 direct", timeout=20_000)
    page.evaluate("document.body.dataset.loaded = 'once'")
    # A path with traffic is probed twice a second, an idle one every 20 s.
    traffic = mesh.host("home").popen(["ping", "-i", "0.05", "-s", "500", mesh.cluster.ip(mesh.host("office"))])
    with mesh.without_direct_path():
        expect(page.locator("#map .edge.hub")).to_have_count(1, timeout=CHANGED_MS)
        expect(page.locator("#summary")).to_contain_text("1 hub")
    traffic.stop()
    mesh.wait_until_direct()
    expect(page.locator("#map .edge.hub")).to_have_count(0, timeout=CHANGED_MS)
    assert page.evaluate("document.body.dataset.loaded") == "once"


@pytest.mark.parametrize(("size", "path"), [*itertools.product(SIZES, ("/", "/matrix", "/nodes/home"))])
def test_a_page_fits_and_is_accessible(mesh: WebMesh, page: Page, size: tuple[int, int], path: str) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(mesh.url + path)
    picture = page.screenshot(full_page=True)
    assert picture.startswith(b"\x89PNG")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "no horizontal scrolling"
    assert accessibility_faults(page) == []
