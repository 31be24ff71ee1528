"""The pages of the mesh in a real browser: sizes, accessibility, the keyboard, and a change that appears on its own.

They need no network of their own: a real coordinator on loopback, with simulated agents on real WebSockets. It runs in
a process, because playwright's own event loop runs in this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.lab.host import REPOSITORY
from tests.web.browser import accessibility_faults, chromium

SIZES = {"wide": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}
NAMES = ("head", "gpu-1", "gpu-2", "laptop")
PATHS = ("/", "/?node=gpu-1", "/matrix", "/nodes/gpu-1")


@dataclass
class Mesh:
    """The process; a line on its input lets the path gpu-1 - laptop change to the kind in it."""

    process: subprocess.Popen[str]
    url: str

    def passes(self) -> str:
        """Return the address that opens the page with a new pass."""
        return self.ask("pass")

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("pages")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.web.simulated", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:  # It also closes both pipes.
        try:
            assert process.stdout is not None
            yield Mesh(process, process.stdout.readline().strip())
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def opened(browser: Browser, mesh: Mesh, size: str = "wide", scheme: str = "light") -> Page:
    """Return a page in a new profile that has entered a pass."""
    context = browser.new_context(
        ignore_https_errors=True,
        bypass_csp=True,  # The page's policy forbids axe-core.
        viewport=SIZES[size],  # type: ignore[arg-type]
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.goto(mesh.passes())
    page.wait_for_selector("#rows tr")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_fits_and_has_no_serious_accessibility_fault(
    browser: Browser, pages: Mesh, size: str, scheme: str, tmp_path: Path
) -> None:
    page = opened(browser, pages, size, scheme)
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


def test_without_script_the_page_shows_the_same_and_refreshes(browser: Browser, pages: Mesh) -> None:
    page = opened(browser, pages)
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


def test_the_keyboard_sorts_searches_and_opens_a_node(browser: Browser, pages: Mesh) -> None:
    page = opened(browser, pages)
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


def test_a_relayed_path_appears_on_the_open_page_and_goes_away_again(browser: Browser, pages: Mesh) -> None:
    page = opened(browser, pages)
    page.wait_for_selector('#live[data-state="live"]')
    for kind in ("hub", "direct"):
        line = pages.ask(kind)
        page.wait_for_selector(f"#{line}.{kind}", timeout=5_000, state="attached")
    page.context.close()
