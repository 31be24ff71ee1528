"""Writing files so that a crash at any moment leaves the old or the new content, never half of it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

#: No room, no quota, read-only: what a user mends, and meshray waits for.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: Nobody else enters.
PRIVATE_FOLDER = 0o700
#: Others may pass through to what is theirs, but not list it.
PASSABLE_FOLDER = 0o711


def write_atomically(path: Path, content: str, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Writes beside ``path`` and renames over it. ``owner`` is (uid, gid)."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            os.fchmod(file.fileno(), mode)
            if owner is not None and os.geteuid() == 0:
                os.fchown(file.fileno(), *owner)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    _sync_folder(path.parent)


def make_folder(path: Path, mode: int = PRIVATE_FOLDER) -> None:
    """Makes the folder with exactly this mode, whatever the umask."""
    path.mkdir(parents=True, exist_ok=True)
    if path.stat().st_mode & 0o777 != mode:
        path.chmod(mode)


def _sync_folder(path: Path) -> None:
    # Without this a power cut may forget the rename although the file itself was synced.
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
