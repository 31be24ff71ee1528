"""The installed distributions of meshray and its dependencies, and their files.

>>> [distribution.name for distribution in needed(distribution("meshray"))]
['aiohappyeyeballs', 'aiohttp', …]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from meshray import __version__

OWN_TAG = "py3-none-any"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"\bextra\s*==")


def needed(root: Distribution, *more: str) -> list[Distribution]:
    """Return all installed distributions that the root requires, directly or indirectly, without extras.

    Args:
        more: names of more distributions to include.
    """
    found: dict[str, Distribution] = {}
    asked = [root]

    def ask(name: str) -> None:
        if name in found:
            return
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # required for another Python or system only
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
    """Return a distribution's name as in the file names of wheels."""
    return re.sub(r"[-_.]+", "_", name).lower()


def files(found: Distribution) -> Iterator[tuple[str, Path]]:
    """Yield the files that pip installed, by their names in site-packages; nothing if pip has no record."""
    for path in found.files or ():
        # The installer of the copy creates programs, compiled files and the record.
        if ".." in path.parts or "__pycache__" in path.parts or path.name == "RECORD":
            continue
        located = Path(str(path.locate()))
        if located.is_file():
            yield str(path), located


def own_record(ours: Distribution) -> dict[str, bytes]:
    """Return the metadata files of meshray, generated because an editable installation has other ones."""
    about = f"meshray-{__version__}.dist-info"
    return {
        f"{about}/METADATA": (ours.read_text("METADATA") or "").encode(),
        f"{about}/entry_points.txt": (ours.read_text("entry_points.txt") or "").encode(),
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {OWN_TAG}\n".encode(),
    }
