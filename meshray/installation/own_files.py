"""The files of this installation of meshray.

>>> dict(own_files())["meshray/errors.py"]
PosixPath('/usr/lib/python3/dist-packages/meshray/errors.py')
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from meshray.render.templates import folder as templates_folder

PACKAGE = Path(__file__).resolve().parents[1]
_LEFT_OUT = {"__pycache__", "templates"}


def own_files() -> Iterator[tuple[str, Path]]:
    """Yield meshray's own files, by their names in site-packages.

    The record is not used, because that of an editable installation does not list them.
    """
    for top, place in ((PACKAGE, "meshray"), (templates_folder(), "meshray/templates")):
        for path in sorted(top.rglob("*")):
            inside = path.relative_to(top)
            if path.is_file() and not _LEFT_OUT.intersection(inside.parts):
                yield f"{place}/{inside}", path
