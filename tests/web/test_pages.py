"""The pages of the mesh in a real browser: sizes, accessibility, the keyboard, and a change that appears on its own.

They need no network of their own; see `tests.web.simulated_pages`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.web.browser import accessibility_faults, chromium
from tests.web.pictures import Picture, faults
from tests.web.simulated_pages import SIZES, SimulatedMesh, open_page, simulated_mesh

NAMES = ("head", "gpu-1", "gpu-2", "laptop")
PATHS = ("/", "/?node=gpu-1", "/matrix", "/nodes/gpu-1")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedMesh]:
    with simulated_mesh(tmp_path_factory.mktemp("pages")) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_fits_and_has_no_serious_accessibility_fault(
    browser: Browser, pages: SimulatedMesh, size: str, scheme: str, tmp_path: Path
) -> None:
    page = open_page(browser, pages, size, scheme)
    for path in PATHS:
        page.goto(pages.url + path)
        page.wait_for_selector('#live[data-state="live"]')
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        page.screenshot(
            path=tmp_path / f"{size}-{scheme}{path.replace('/', '-').replace('?', '-')}.png", full_page=True
        )
        assert accessibility_faults(page) == [], path
    page.goto(pages.url + "/")
    for name in NAMES:
        assert page.locator("#rows").get_by_role("link", name=name, exact=True).is_visible()
        assert page.locator(f'#map a[aria-label^="{name},"]').is_visible()
    page.context.close()


def test_without_script_the_page_shows_the_same_and_refreshes(browser: Browser, pages: SimulatedMesh) -> None:
    page = open_page(browser, pages)
    cookies = page.context.cookies()
    context = browser.new_context(ignore_https_errors=True, java_script_enabled=False)
    context.add_cookies(cookies)  # type: ignore[arg-type]
    plain = context.new_page()
    plain.goto(pages.url + "/")
    for name in NAMES:
        assert plain.locator("#rows").get_by_role("link", name=name, exact=True).is_visible()
    assert plain.locator('meta[http-equiv="refresh"]').count() == 1
    context.close()
    page.context.close()


def test_the_keyboard_sorts_searches_and_opens_a_node(browser: Browser, pages: SimulatedMesh) -> None:
    page = open_page(browser, pages)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("gpu")
    assert page.locator("#rows tr:visible").count() == 2
    assert page.locator("#found").inner_text() == "2 of 4"
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Node"
    page.keyboard.press("Enter")
    head = page.locator("#node-table thead th").first
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.locator("#rows th a").all_inner_texts() == ["gpu-1", "gpu-2", "head", "laptop"]
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("#rows th a").all_inner_texts() == ["laptop", "head", "gpu-2", "gpu-1"]
    page.locator("#rows").get_by_role("link", name="gpu-1").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/nodes/gpu-1")
    assert page.locator("h1").inner_text() == "gpu-1"
    page.context.close()


def test_a_relayed_path_appears_on_the_open_page_and_goes_away_again(browser: Browser, pages: SimulatedMesh) -> None:
    page = open_page(browser, pages)
    page.wait_for_selector('#live[data-state="live"]')
    for kind in ("hub", "direct"):
        line = pages.ask(kind)
        page.wait_for_selector(f"#{line}.{kind}", timeout=5_000, state="attached")
    page.context.close()


#: Changes of the style that the pictures must not accept, and words of one of the faults that they report.
BROKEN = {
    "the map is empty": ("#map > * { display: none }", "the node gpu-1 is at"),
    "the map has no lines": ("#map .edge { visibility: hidden }", "the map has the lines {}"),
    "the map is not shown": ("#map { display: none }", "#map is missing"),
    "the map is plain": ("#map { opacity: 0 }", "#mesh-map looks different"),
    "the table overlaps the map": ("#nodes { translate: -60px -150px }", "#mesh-map and #nodes overlap"),
    "the table has no rows": ("#rows { visibility: hidden }", "#rows tr:nth-child(1) is missing"),
}  # fmt: skip


@pytest.fixture(params=SIZES)
def pictured(browser: Browser, pages: SimulatedMesh, request: pytest.FixtureRequest) -> Iterator[tuple[Page, Picture]]:
    """Yield the map's page in one of the sizes, and its stored picture."""
    page = open_page(browser, pages, request.param)
    page.wait_for_selector('#live[data-state="live"]')
    yield page, Picture.load(request.param)
    page.context.close()


@pytest.mark.parametrize("font", ["", "DejaVu Serif, serif", "monospace"])
def test_the_map_page_looks_as_stored_in_any_font(pictured: tuple[Page, Picture], font: str) -> None:
    """Compare the pictures; after a change of the page, `python -m tests.web.pictures` stores new ones."""
    page, stored = pictured
    if font:
        page.add_style_tag(content=f"* {{ font-family: {font} !important }}")
    assert faults(page, stored) == []


@pytest.mark.parametrize("broken", BROKEN)
def test_the_pictures_show_a_broken_page(pictured: tuple[Page, Picture], broken: str) -> None:
    page, stored = pictured
    style, words = BROKEN[broken]
    page.add_style_tag(content=style)
    assert [fault for fault in faults(page, stored) if words in fault]
