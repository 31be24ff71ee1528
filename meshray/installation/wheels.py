"""This very installation of meshray and its dependencies as wheels.

They can be installed into an image with the same Python without a network, and the same meshray runs inside and
outside. `own_wheel` alone upgrades other nodes (`meshray node upgrade`).

>>> [wheel.name for wheel in collect()]
['meshray-0.1.0-py3-none-any.whl', 'aiohttp-3.13.2-cp312-cp312-manylinux2014_x86_64.whl', …]

pip in the image uses a wheel if the image lacks the package and the wheel fits its Python.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from meshray.installation.distributions import OWN_TAG, files, needed, normal, own_record
from meshray.installation.own_files import own_files

#: Files that are started, not imported.
_PROGRAMS = ("/meshray-engine",)


@dataclass(frozen=True)
class Wheel:
    """One file for pip."""

    name: str
    content: bytes


def collect() -> list[Wheel]:
    """Return meshray and all of its dependencies that pip installed.

    The packages of Linux distributions have no list of their files; pip in the image downloads those.
    """
    wheels = [own_wheel()]
    for found in needed(distribution("meshray")):
        content = {name: path.read_bytes() for name, path in files(found)}
        if content:
            wheels.append(_pack(found, content, _tag(found)))
    return wheels


def own_wheel() -> Wheel:
    """Return meshray itself. The same files always give the same bytes."""
    ours = distribution("meshray")
    own = {name: path.read_bytes() for name, path in own_files()}
    return _pack(ours, {**own, **own_record(ours)}, OWN_TAG)


def _tag(found: Distribution) -> str:
    """Return ``cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64`` from its WHEEL file (PEP 425)."""
    lines = (found.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag:").strip().split("-") for line in lines if line.startswith("Tag:")]
    parts = zip(*(tag for tag in tags if len(tag) == 3), strict=True)
    return "-".join(".".join(dict.fromkeys(part)) for part in parts) or OWN_TAG


def _pack(found: Distribution, content: dict[str, bytes], tag: str) -> Wheel:
    name, version = normal(found.metadata["Name"]), found.version
    about = next(Path(path).parts[0] for path in content if ".dist-info/" in path)
    content[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{about}/RECORD"]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, text in content.items():
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # pip makes programs executable by these bits.
            entry.external_attr = (0o100755 if path.endswith(_PROGRAMS) else 0o100644) << 16
            archive.writestr(entry, text)
    return Wheel(f"{name}-{version}-{tag}.whl", buffer.getvalue())
