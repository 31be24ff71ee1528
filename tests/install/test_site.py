"""The documentation's site: every page is part of it, looks as on GitHub, and a broken link ends the build."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab.host import REPOSITORY
from tests.printed import BLOCK, GUIDES, blocks
from tests.unit.test_links import anchors_of

PAGES = sorted((REPOSITORY / "docs").rglob("*.md"))
#: Installs mkdocs the first time.
BUILD_S = 800
pytestmark = pytest.mark.timeout(2 * BUILD_S)


def build(clone: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    script = [clone / "scripts/site.sh", folder]
    return subprocess.run(script, capture_output=True, text=True, check=False, timeout=BUILD_S)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(REPOSITORY, folder)
    assert done.returncode == 0, done.stderr
    return folder


def page_of(site: Path, page: Path) -> str:
    """Return the HTML of a page."""
    name = page.relative_to(REPOSITORY / "docs").with_suffix("")
    return (site / ("index.html" if name.name == "index" else f"{name}/index.html")).read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_have_the_anchors_of_github(site: Path, page: Path) -> None:
    html = page_of(site, page)
    repeated = re.compile(r"-\d+$")
    missing = {anchor for anchor in anchors_of(page) if f'id="{anchor}"' not in html}
    assert {anchor for anchor in missing if not repeated.search(anchor)} == set()


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_blocks_of_commands_are_blocks(site: Path, page: Path) -> None:
    html = page_of(site, page)
    assert html.count("<pre") == len(BLOCK.findall(page.read_text()))
    untested = [block for block in blocks(page) if block.mark == "not tried"]
    assert html.count("No test runs these commands: ") == len(untested)


def test_links_out_of_the_documentation_lead_to_the_repository(site: Path) -> None:
    html = page_of(site, REPOSITORY / "docs/releasing.md")
    assert 'href="https://github.com/meshray/meshray/blob/main/CHANGELOG.md"' in html


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    html = page_of(site, REPOSITORY / "docs/index.md")
    loaded = re.findall(r'<(?:script|img)[^>]* src="([^"]+)"|<link[^>]* rel="stylesheet"[^>]* href="([^"]+)"', html)
    loaded += re.findall(r'<link[^>]* href="([^"]+)"[^>]* rel="(stylesheet)"', html)
    assert [link for links in loaded for link in links if link.startswith(("http", "//"))] == []


@pytest.mark.parametrize(
    "link, reason",
    [
        ("[x](gone.md)", "gone.md"),
        ("[x](../GONE.md)", "GONE.md"),
        ("[x](design.md#gone)", "gone"),
    ],
)
def test_a_broken_link_ends_the_build(site: Path, tmp_path: Path, link: str, reason: str) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("containers", "docs", "meshray", "requirements", "scripts", "templates", "tests"):
        shutil.copytree(REPOSITORY / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in REPOSITORY.glob("*"):
        if path.is_file():
            shutil.copy(path, clone)
    (clone / ".venv").symlink_to(REPOSITORY / ".venv")
    # The tools are those of the first build.
    (clone / ".cache").mkdir()
    (clone / ".cache/site-tools").symlink_to(REPOSITORY / ".cache/site-tools")
    script = clone / "scripts/site.sh"
    script.write_text(script.read_text().replace("fingerprint() { pwd;", f"fingerprint() {{ echo {REPOSITORY};"))
    with (clone / "docs/index.md").open("a") as page:
        page.write(f"\n{link}\n")
    done = build(clone, tmp_path / "out")
    assert done.returncode != 0
    assert reason in done.stderr + done.stdout
