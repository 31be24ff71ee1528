"""The templates and static files of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import meshray.web
from meshray.web.static_files import StaticFiles

FOLDER = Path(meshray.web.__file__).parent
TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))
#: What the content security policy forbids, and what would fetch something from elsewhere.
FORBIDDEN = {
    "an inline script": r"<script(?![^>]*\bsrc=)",
    "an inline style": r"<style|\bstyle=",
    "an event handler": r"\son\w+\s*=",
    "another host": r"(?:src|href|action)=[\"']?(?:https?:)?//",
    "unescaped text": r"\|\s*safe\b|autoescape\s+false",
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
@pytest.mark.parametrize("what", FORBIDDEN)
def test_templates_keep_to_the_content_security_policy(template: Path, what: str) -> None:
    assert re.search(FORBIDDEN[what], template.read_text(), re.IGNORECASE) is None


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_each_form_that_changes_something_has_the_sessions_token(template: Path) -> None:
    for form in re.findall(r"<form\b.*?</form>", template.read_text(), re.DOTALL):
        if 'method="post"' in form and 'action="/enter"' not in form:
            assert 'name="csrf" value="{{ session.csrf }}"' in form


def test_all_pages_have_the_colours_of_one_palette() -> None:
    sheets = {path.name: path.read_text() for path in (FOLDER / "static").glob("*.css")}
    palette = sheets.pop("palette.css")
    used = {name for text in sheets.values() for name in re.findall(r"var\((--[a-z-]+)\)", text)}
    light, dark, _ = (set(re.findall(r"(--[a-z-]+):", part)) for part in palette.split("@media"))
    assert used <= light == dark
    for name, text in sheets.items():
        assert re.findall(r"#[0-9a-fA-F]{3,8}\b|rgb\(", text) == [], name


def test_the_address_of_a_file_changes_with_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("a")
    (tmp_path / "b.js").write_text("b")
    (tmp_path / "notes.txt").write_text("not served")
    before = StaticFiles(tmp_path)
    assert re.fullmatch(r"/static/[0-9a-f]{16}/a\.css", before.url("a.css"))
    assert StaticFiles(tmp_path).url("a.css") == before.url("a.css")
    (tmp_path / "b.js").write_text("c")
    assert StaticFiles(tmp_path).url("a.css") != before.url("a.css")
    with pytest.raises(KeyError):
        before.url("notes.txt")
