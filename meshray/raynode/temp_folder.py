"""Choose the folder of Ray's sessions, sockets and logs: /tmp/ray, unless it belongs to another user.

    /tmp/ray          the default, if this user may use it
    /tmp/ray-1001     this user's folder, if another user's Ray came first
    /tmp/ray-1001-2   the next one, if another user occupies that path

Drivers on the node learn the folder from the cluster.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.linux.as_user import run_as_user
from meshray.linux.user import User

OPTION = "--temp-dir"
_MOST = 9


def find_temp_folder(environ: Mapping[str, str], user: User) -> Path | None:
    """Return the folder to pass to Ray, and create it; None if Ray's default is usable. Blocks for milliseconds.

    Args:
        environ: Ray's environment; RAY_TMPDIR and TMPDIR move the default (`get_default_system_temp_dir` of Ray 2.60).
        user: the user who runs Ray.

    Raises:
        MeshrayError: ``temp_dir_taken``, if no folder belongs to this user.
    """
    default = default_folder(environ)
    if _may_work_in(default, user) and _may_work_in(default / "ray_current_cluster", user):
        return None
    for folder in _own_folders(default, user):
        # An existing folder is used only if it belongs to this user.
        run_as_user(user, ["mkdir", "-m", "755", str(folder)])
        if _is_own(folder, user):
            return folder
    raise MeshrayError(
        "temp_dir_taken",
        f"{default} belongs to another user's Ray, and {user.name} cannot create a folder beside it",
        hint=f"ls -ld {default.parent} {default}*",
    )


def default_folder(environ: Mapping[str, str]) -> Path:
    """Return Ray's default folder."""
    return Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp", "ray")  # noqa: S108 - it is Ray's


def used_folder(environ: Mapping[str, str], user: User) -> Path:
    """Return the folder that this user's Ray uses, or used last, on this machine."""
    default = default_folder(environ)
    owned = [folder for folder in (*_own_folders(default, user), default) if _is_own(folder, user)]
    return max(owned, key=_last_session, default=default)


def _own_folders(default: Path, user: User) -> Iterator[Path]:
    for number in range(1, _MOST + 1):
        yield default.with_name(f"{default.name}-{user.uid}" + (f"-{number}" if number > 1 else ""))


def _is_own(folder: Path, user: User) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == user.uid


def _last_session(folder: Path) -> float:
    try:
        return (folder / "session_latest").lstat().st_mtime
    except OSError:
        return 0.0


def _may_work_in(path: Path, user: User) -> bool:
    try:
        found = path.stat()
    except OSError:
        return True  # Ray creates it
    # Root may write anywhere, but another user must not be able to replace files that root's Ray opens.
    return user.has_access(found, stat.S_IWOTH) and (user.uid != 0 or found.st_uid == 0)
