"""Writes the files of this installation to standard output as a tar archive, with names as in site-packages.

It runs as the owner of the environment, never as root: a file that this user may not read does not get into the copy,
even if a link in the environment points to it.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from importlib.util import cache_from_source
from pathlib import Path
from typing import BinaryIO

from meshray import __version__
from meshray.installation.distributions import files, needed, normal, own_record
from meshray.installation.own_files import own_files
from meshray.installation.reinstall import ORIGIN_FILES

#: Optional packages (`join --runtime docker`, `join --env match`).
EXTRAS = ("docker", "uv")


#: Option: leave out meshray itself. The names of further packages may follow.
ONLY_DEPENDENCIES = "--only-dependencies"


def main() -> int:
    """Write the archive to standard output."""
    words = sys.argv[1:]
    only_dependencies = words[:1] == [ONLY_DEPENDENCIES]
    write(sys.stdout.buffer, *words[1:], with_own=not only_dependencies)
    return 0


def write(out: BinaryIO, *more: str, with_own: bool = True) -> None:
    """Write the archive to this stream, which need not be seekable.

    Args:
        more: names of more distributions to include.
        with_own: include meshray itself, not only its dependencies.
    """
    ours = distribution("meshray")
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        if with_own:
            names = []
            for name, path in _with_compiled(own_files()):
                names += _add(archive, name, path)
            _record(archive, ours, names, {**own_record(ours), **_origin(ours)})
        for found in needed(ours, *EXTRAS, *more):
            names = []
            for name, path in _with_compiled(files(found)):
                names += _add(archive, name, path)
            _record(archive, found, names, {})


def _origin(ours: Distribution) -> dict[str, bytes]:
    """Return the files that record the origin of meshray, with which the copy shows how to install it again."""
    found = {name: ours.read_text(name) for name in ORIGIN_FILES}
    return {f"meshray-{__version__}.dist-info/{name}": text.encode() for name, text in found.items() if text}


def _with_compiled(these: Iterator[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    """Yield each file, and what this interpreter compiled from it, so that the copy need not compile anything."""
    for name, path in these:
        yield name, path
        if path.suffix == ".py":
            compiled = Path(cache_from_source(str(path)))
            if compiled.is_file():
                yield str(Path(name).parent / "__pycache__" / compiled.name), compiled


def _add(archive: tarfile.TarFile, name: str, path: Path) -> list[str]:
    """Add a file and return its name; return nothing if it is not a regular file."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return []
        entry = tarfile.TarInfo(name)
        # In whole seconds: by them Python decides whether a compiled file is up to date.
        entry.size, entry.mtime, entry.mode = status.st_size, int(status.st_mtime), status.st_mode & 0o111
        archive.addfile(entry, file)
    return [name]


def _record(archive: tarfile.TarFile, found: Distribution, names: list[str], built: dict[str, bytes]) -> None:
    """Add pip's list of the package's files, so that the copy knows its own parts."""
    if not names:
        return
    dist_info = next((Path(name).parts[0] for name in (*names, *built) if ".dist-info/" in name), "")
    dist_info = dist_info or f"{normal(found.metadata['Name'])}-{found.version}.dist-info"
    built = {
        **built,
        f"{dist_info}/RECORD": "".join(f"{name},,\n" for name in (*names, *built, f"{dist_info}/RECORD")).encode(),
    }
    for name, content in built.items():
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    sys.exit(main())
