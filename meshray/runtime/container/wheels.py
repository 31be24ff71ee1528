"""This very installation of meshray, and what it needs, as wheels: they can be installed into an image of the same
Python without a network, and it is the same meshray that runs inside and outside.

>>> [wheel.name for wheel in collect()]
['meshray-0.1.0-py3-none-any.whl', 'aiohttp-3.13.2-cp312-cp312-manylinux2014_x86_64.whl', …]

pip in the image chooses: it takes a wheel where the image has not got the package and the wheel fits its Python.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from meshray import __version__
from meshray.render.templates import folder as templates_folder

_PACKAGE = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"\bextra\s*==")
_OWN_TAG = "py3-none-any"
#: What is started and not imported.
_PROGRAMS = ("/meshray-engine",)
_LEFT_OUT = {"__pycache__", "templates"}


@dataclass(frozen=True)
class Wheel:
    """One file for pip."""

    name: str
    content: bytes


def collect() -> list[Wheel]:
    """meshray, and all of what it needs that was installed by pip (a distribution's own packages keep no record of
    their files; pip in the image will look for those elsewhere)."""
    ours = distribution("meshray")
    wheels = [_pack(ours, _own_files(ours), _OWN_TAG)]
    for needed in _needed(ours):
        found = distribution(needed)
        files = {name: path.read_bytes() for name, path in _files(found)}
        if files:
            wheels.append(_pack(found, files, _tag(found)))
    return wheels


def _needed(root: Distribution) -> list[str]:
    """Every package that is installed and that the root asks for, directly or not; those of extras are not."""
    found: dict[str, Distribution] = {}
    asked = [root]
    while asked:
        for requirement in asked.pop().requires or ():
            match = _NAME.match(requirement)
            name = _normal(match[0]) if match else ""
            if not name or _EXTRA.search(requirement) or name in found:
                continue
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:  # for another Python or system
                continue
            asked.append(found[name])
    return sorted(found)


def _normal(name: str) -> str:
    """As names stand in wheels' file names: one package, one spelling."""
    return re.sub(r"[-_.]+", "_", name).lower()


def _files(found: Distribution) -> Iterator[tuple[str, Path]]:
    for path in found.files or ():
        # Programs and compiled files are made anew by pip, and so is the record.
        if ".." in path.parts or "__pycache__" in path.parts or path.name == "RECORD":
            continue
        located = Path(str(path.locate()))
        if located.is_file():
            yield str(path), located


def _own_files(ours: Distribution) -> dict[str, bytes]:
    """Not by the record: a checkout that is installed as editable has none of its own files in it."""
    files = {}
    for top, place in ((_PACKAGE, "meshray"), (templates_folder(), "meshray/templates")):
        for path in sorted(top.rglob("*")):
            inside = path.relative_to(top)
            if path.is_file() and not _LEFT_OUT.intersection(inside.parts):
                files[f"{place}/{inside}"] = path.read_bytes()
    about = f"meshray-{__version__}.dist-info"
    files[f"{about}/METADATA"] = (ours.read_text("METADATA") or "").encode()
    files[f"{about}/entry_points.txt"] = (ours.read_text("entry_points.txt") or "").encode()
    files[f"{about}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {_OWN_TAG}\n".encode()
    return files


def _tag(found: Distribution) -> str:
    """``cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64`` of the tags in its WHEEL file (PEP 425)."""
    lines = (found.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag:").strip().split("-") for line in lines if line.startswith("Tag:")]
    parts = zip(*(tag for tag in tags if len(tag) == 3), strict=True)
    return "-".join(".".join(dict.fromkeys(part)) for part in parts) or _OWN_TAG


def _pack(found: Distribution, files: dict[str, bytes], tag: str) -> Wheel:
    name, version = _normal(found.metadata["Name"]), found.version
    about = next(Path(path).parts[0] for path in files if ".dist-info/" in path)
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # pip gives programs their rights by these bits.
            entry.external_attr = (0o100755 if path.endswith(_PROGRAMS) else 0o100644) << 16
            archive.writestr(entry, content)
    return Wheel(f"{name}-{version}-{tag}.whl", buffer.getvalue())
