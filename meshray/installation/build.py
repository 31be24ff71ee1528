"""Identify the exact files of an installation, because two commits may have the same version.

>>> own_build()
'3f5a0c9e12ab'
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from meshray.installation.own_files import own_files

#: The engine is built for each machine, so it is not part of the identity.
ENGINE = "meshray/wireguard/engine/meshray-engine"
_CHARACTERS = 12


def build_of(files: Iterable[tuple[str, bytes]]) -> str:
    """Return a digest of the names in site-packages and the contents of these files, without the engine."""
    contents = {name: hashlib.sha256(content).hexdigest() for name, content in files if name != ENGINE}
    lines = "".join(f"{name} {contents[name]}\n" for name in sorted(contents))
    return hashlib.sha256(lines.encode()).hexdigest()[:_CHARACTERS]


def own_build() -> str:
    """Return the build of this installation."""
    return build_of((name, path.read_bytes()) for name, path in own_files() if name != ENGINE)


def stamp() -> str:
    """Return a digest of the sizes and times of this installation's files, which is faster and differs per machine."""
    digest = hashlib.sha256()
    for name, path in own_files():
        status = path.stat()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:_CHARACTERS]
