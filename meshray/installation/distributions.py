"""The files of this very installation of meshray, and of all that it needs.

>>> [distribution.name for distribution in needed(distribution("meshray"))]
['aiohappyeyeballs', 'aiohttp', …]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from meshray import __version__
from meshray.render.templates import folder as templates_folder

PACKAGE = Path(__file__).resolve().parents[1]
OWN_TAG = "py3-none-any"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"\bextra\s*==")
_LEFT_OUT = {"__pycache__", "templates"}


def needed(root: Distribution, *more: str) -> list[Distribution]:
    """Return every distribution that is installed and that the root asks for, directly or not; those of extras are not.

    Args:
        more: names of others that count as asked for.
    """
    found: dict[str, Distribution] = {}
    asked = [root]

    def ask(name: str) -> None:
        if name in found:
            return
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another Python or system
            return
        asked.append(found[name])

    for name in more:
        ask(normal(name))
    while asked:
        for requirement in asked.pop().requires or ():
            match = _NAME.match(requirement)
            if match and not _EXTRA.search(requirement):
                ask(normal(match[0]))
    return [found[name] for name in sorted(found)]


def normal(name: str) -> str:
    """As names stand in wheels' file names: one package, one spelling."""
    return re.sub(r"[-_.]+", "_", name).lower()


def files(found: Distribution) -> Iterator[tuple[str, Path]]:
    """The files that pip installed, by their names in site-packages; none where it keeps no record of them."""
    for path in found.files or ():
        # Programs and compiled files are made by whoever installs, and so is the record.
        if ".." in path.parts or "__pycache__" in path.parts or path.name == "RECORD":
            continue
        located = Path(str(path.locate()))
        if located.is_file():
            yield str(path), located


def own_files() -> Iterator[tuple[str, Path]]:
    """meshray's own files. Not by the record: a checkout that is installed as editable has none of its own files in
    it."""
    for top, place in ((PACKAGE, "meshray"), (templates_folder(), "meshray/templates")):
        for path in sorted(top.rglob("*")):
            inside = path.relative_to(top)
            if path.is_file() and not _LEFT_OUT.intersection(inside.parts):
                yield f"{place}/{inside}", path


def own_record(ours: Distribution) -> dict[str, bytes]:
    """What pip keeps of meshray, made here for the same reason."""
    about = f"meshray-{__version__}.dist-info"
    return {
        f"{about}/METADATA": (ours.read_text("METADATA") or "").encode(),
        f"{about}/entry_points.txt": (ours.read_text("entry_points.txt") or "").encode(),
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {OWN_TAG}\n".encode(),
    }
