"""Ray's token as files of the user who runs Ray: at meshray's path, and at Ray's default path.

Ray reads ~/.ray/auth_token unless a variable names another file, so `ray.init()` in a notebook, an IDE or a cron job of
that user finds cluster and token. The token of another cluster at this path is never replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from meshray.linux.as_user import run_as_user
from meshray.linux.files import PASSABLE_FOLDER, PRIVATE_FOLDER, make_folder, write_atomically
from meshray.linux.user import User
from meshray.raynode import preflight

_RAY_FOLDER, _RAY_FILE = ".ray", "auth_token"
#: Far above Ray's own limit.
_LONGEST = 4096
_WRITE = 'umask 077; mkdir -p "$1" && cat > "$1/.meshray_token" && mv -f "$1/.meshray_token" "$1/$2"'


def write_token(path: Path, token: str, user: User) -> None:
    """Write the token for this user alone.

    Raises:
        MeshrayError: the user cannot read the file.
    """
    make_folder(path.parent, PASSABLE_FOLDER)
    write_atomically(path, token, 0o600, (user.uid, user.gid))
    preflight.check_readable(path, user)


def offer(token: str, user: User, record: Path) -> str:
    """Write the token to Ray's default path, and return the reason if it was not written, or ``""`` on success.

    Blocks for some milliseconds.

    Args:
        record: the file with a digest of the written token, so that only this token is replaced and removed later.
    """
    if user.home == Path("/") or not user.home.is_dir():
        return f"{user.name} has no home folder"
    folder = user.home / _RAY_FOLDER
    there = _read(folder, user)
    if there == token:
        if not _is_recorded(record, token):
            _record(record, token)
        return ""
    if there and not _is_recorded(record, there):
        return f"{folder / _RAY_FILE} has the token of another cluster"
    done = run_as_user(user, ["sh", "-c", _WRITE, "sh", str(folder), _RAY_FILE], token.encode())
    if done is None or done.returncode != 0:
        return f"{folder / _RAY_FILE} cannot be written"
    _record(record, token)
    return ""


def take_back(user: User, record: Path) -> None:
    """Remove the token that `offer` wrote, and no other."""
    folder = user.home / _RAY_FOLDER
    there = _read(folder, user) if record.exists() else ""
    if there and _is_recorded(record, there):
        run_as_user(user, ["rm", "-f", str(folder / _RAY_FILE)])
        run_as_user(user, ["find", str(folder), "-maxdepth", "0", "-type", "d", "-empty", "-delete"])
    with contextlib.suppress(OSError):
        record.unlink(missing_ok=True)


def _read(folder: Path, user: User) -> str:
    done = run_as_user(user, ["head", "-c", str(_LONGEST), str(folder / _RAY_FILE)])
    return done.stdout.decode(errors="replace").strip() if done is not None and done.returncode == 0 else ""


def _is_recorded(record: Path, token: str) -> bool:
    try:
        return record.read_text() == _digest(token)
    except (OSError, UnicodeDecodeError):
        return False


def _record(record: Path, token: str) -> None:
    record.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    write_atomically(record, _digest(token))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
