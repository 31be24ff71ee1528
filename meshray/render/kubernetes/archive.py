"""A Helm chart as one file, as `helm package` makes it: its folder in a .tgz."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping


def packed(folder: str, files: Mapping[str, str]) -> bytes:
    """Return the archive. Equal files give equal bytes.

    Args:
        files: text by path in the folder.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in sorted(files.items()):
            content = text.encode()
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(archive.getvalue(), mtime=0)
