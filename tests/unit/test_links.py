"""Every link between the repository's Markdown files leads to a file, and to a heading, that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", ".github/**/*.md", "docs/**/*.md", "containers/*.md")
    for page in REPOSITORY.glob(pattern)
)
#: The targets of `[text](target)` and `<target>`, without a title after the target.
_LINK = re.compile(r"\]\(<?([^)\s>]+)[^)]*\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n)\n(?: {4}.*\n)+")
_CODE = re.compile(r"`[^`\n]+`")


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return _INDENTED.sub("\n", _FENCE.sub("", page.read_text()))


def links_of(page: Path) -> Iterator[str]:
    """Return the targets of a page's links, other than those to other sites."""
    for target in _LINK.findall(_CODE.sub("", prose(page))):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors_of(page: Path) -> set[str]:
    """Return the names that GitHub gives the headings of a page."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = 0
        while (unique := f"{name}-{number}" if number else name) in anchors:
            number += 1
        anchors.add(unique)
    return anchors | set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in links_of(page):
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(REPOSITORY), f"{target} leaves the repository"
        assert file.exists(), f"{target}: no such file"
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), f"{target}: no such heading"


def test_headings_are_named_as_on_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What `init` does, exactly\n\n## [A](b.md) & C_d\n\n## Same\n\n## Same\n\n    # code\n\n```\n# code\n```\n"
    )
    assert anchors_of(page) == {"what-init-does-exactly", "a--c_d", "same", "same-1"}


def test_links_are_found_in_prose_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '[a](b.md#c "title") `[no](code.md)` [d](https://example.org)\n\n    [no](block.md)\n\n![e](f.png)\n'
    )
    assert list(links_of(page)) == ["b.md#c", "f.png"]


#: A file or a folder of the repository, perhaps with wildcards, and a module or a name in it.
_PATH = re.compile(r"`((?:meshray|tests|docs|templates|containers|scripts|requirements)(?:/[\w.*-]+)*/[\w.*-]*)`")
_MODULE = re.compile(r"(?:`|-m )(meshray(?:\.[A-Za-z_]\w*){2,})")


def names_of(page: Path) -> Iterator[str]:
    """Return the paths and the modules of this repository in a page."""
    text = page.read_text()
    yield from _PATH.findall(text)
    yield from _MODULE.findall(text)


def exists(name: str) -> bool:
    """Return whether there is such a path, or such a module or a name in such a module."""
    if "/" in name:
        return any(REPOSITORY.glob(name))
    whole = REPOSITORY / name.replace(".", "/")
    holder, _, last = name.rpartition(".")
    module = REPOSITORY / (holder.replace(".", "/") + ".py")
    return (
        whole.is_dir()
        or whole.with_suffix(".py").exists()
        or (module.exists() and re.search(rf"\b{last}\b", module.read_text()) is not None)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_path_and_module_of_a_page_exists(page: Path) -> None:
    assert [name for name in names_of(page) if not exists(name)] == []


def test_paths_and_modules_are_recognised(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`meshray/model/` `tests/lab/x*.py` `meshray/node:1` `python -m meshray.agent.main` `meshray.service`\n"
    )
    assert list(names_of(page)) == ["meshray/model/", "tests/lab/x*.py", "meshray.agent.main"]
    assert exists("meshray/model/") and exists("meshray.errors.MeshrayError") and not exists("meshray.errors.Gone")
