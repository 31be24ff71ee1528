"""Write files so that a crash leaves either the old or the new content."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

#: Errors of a full disk, an exceeded quota or a read-only file system, which a user fixes while meshray waits.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: Only the owner may enter.
PRIVATE_FOLDER = 0o700
#: Others may pass through the folder, but not list it.
PASSABLE_FOLDER = 0o711


def write_atomically(path: Path, content: str | bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Write a temporary file beside ``path`` and rename it. ``owner`` is (uid, gid)."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            if owner is not None and os.geteuid() == 0:
                os.fchown(file.fileno(), *owner)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    # Without this a power failure may lose the rename although the file itself was synced.
    sync(path.parent)


def make_folder(path: Path, mode: int = PRIVATE_FOLDER) -> None:
    """Create the folder with exactly this mode, regardless of the umask."""
    path.mkdir(parents=True, exist_ok=True)
    if path.stat().st_mode & 0o777 != mode:
        path.chmod(mode)


def sync(path: Path) -> None:
    """Return when the content of this file, or the names in this folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
