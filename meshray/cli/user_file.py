"""Files that a user names on a command line of root."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO


def read_as_user(file: str, environ: Mapping[str, str], limit: int) -> str:
    """Return the beginning of a text file, opened with the user's permissions unless only root can change its path.

    A task of the user may have made the file a link to a file of root.

    Args:
        environ: the environment of this call, which identifies the user for whom root acts.
        limit: the maximum number of characters to read.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is not text.
    """
    with _opened_as_user(file, environ) as opened, io.TextIOWrapper(opened) as text:
        return text.read(limit)


def read_bytes_as_user(file: str, environ: Mapping[str, str], limit: int) -> bytes:
    """Return the beginning of a file, opened as `read_as_user` opens it.

    Args:
        limit: the maximum number of bytes to read.

    Raises:
        OSError: the file cannot be read.
    """
    with _opened_as_user(file, environ) as opened:
        return opened.read(limit)


def _opened_as_user(file: str, environ: Mapping[str, str]) -> BinaryIO:
    from meshray.linux.trusted_files import first_untrusted
    from meshray.linux.user import User

    user = User.invoking(environ)
    # After @ or = a shell does not expand ~, and under sudo HOME is usually root's.
    is_users = file.startswith("~/") and user.uid != os.geteuid()
    path = (user.home / file[2:] if is_users else Path(file).expanduser()).absolute()
    if first_untrusted(path) is None:
        return path.open("rb")
    with user.impersonated():
        return path.open("rb")
