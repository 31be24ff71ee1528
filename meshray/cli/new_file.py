"""A file that a command writes for the user who typed it.

    with new_file(Path("phone.conf"), "--config", os.environ) as file:
        file.write(text)

With sudo it is created with that user's permissions, if they suffice: root must not write where the user could not,
even if the path changes meanwhile. It is written through the descriptor that created it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from meshray.errors import UsageError
from meshray.linux.trusted_files import first_untrusted
from meshray.linux.user import User


@contextlib.contextmanager
def new_file(path: Path, option: str, environ: Mapping[str, str]) -> Iterator[IO[bytes]]:
    """Create the file, empty and for its owner alone (0600), for the block to write; it is removed if that fails.

    Raises:
        UsageError: ``file_exists``, or ``file_closed`` if it cannot be created.
    """
    user = User.invoking(environ)
    folder = _open_folder(path, option, user)
    try:
        with _as(user, folder, path):
            try:
                handle = os.open(path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
            except FileExistsError:
                raise UsageError("file_exists", f"{path} exists", hint=f"{option} with another name") from None
            except OSError as error:
                raise _closed(path, option, error) from None
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
        except BaseException:
            with contextlib.suppress(OSError), _as(user, folder, path):
                os.unlink(path.name, dir_fd=folder)
            raise
    finally:
        os.close(folder)


def _open_folder(path: Path, option: str, user: User) -> int:
    folder = path.absolute().parent
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        with user.impersonated():
            return os.open(folder, flags)
    except OSError as error:
        if user.identity and first_untrusted(folder) is None:
            return os.open(folder, flags)
        raise _closed(path, option, error) from None


@contextlib.contextmanager
def _as(user: User, folder: int, path: Path) -> Iterator[None]:
    """Use the user's permissions, or root's if only root can write there and change the path."""
    owned_by_root = bool(user.identity) and first_untrusted(path.absolute().parent) is None
    with user.impersonated():
        if not owned_by_root or os.access(".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True):
            yield
            return
    yield


def _closed(path: Path, option: str, error: OSError) -> UsageError:
    return UsageError("file_closed", f"{path} cannot be written: {error.strerror}", hint=f"another {option}")
