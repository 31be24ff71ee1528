"""Where Ray keeps its sessions, sockets and logs: its own /tmp/ray, unless that is another user's.

    /tmp/ray          as everywhere, where this user may work in it
    /tmp/ray-1001     this user's own, where another user's Ray was there first
    /tmp/ray-1001-2   where somebody has put something else in that place

A driver on the node learns the folder from the cluster, so nothing else need know it.
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
    """Return the folder that Ray must be given, made if need be; None: Ray's default is fine. Blocks for milliseconds.

    Args:
        environ: Ray's; RAY_TMPDIR and TMPDIR move the default (`get_default_system_temp_dir` of Ray 2.60).
        user: as whom Ray runs.

    Raises:
        MeshrayError: ``temp_dir_taken``: there is no place that is this user's.
    """
    default = default_folder(environ)
    if _may_work_in(default, user) and _may_work_in(default / "ray_current_cluster", user):
        return None
    for folder in _own_folders(default, user):
        # Whoever makes it owns it: what is there already is taken only where it is this user's.
        run_as_user(user, ["mkdir", "-m", "755", str(folder)])
        if _is_own(folder, user):
            return folder
    raise MeshrayError(
        "temp_dir_taken",
        f"{default} belongs to another user's Ray, and {user.name} can make no folder of its own beside it",
        hint=f"ls -ld {default.parent} {default}*",
    )


def default_folder(environ: Mapping[str, str]) -> Path:
    """Return where Ray works unless it is told otherwise."""
    return Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp", "ray")  # noqa: S108 - it is Ray's


def used_folder(environ: Mapping[str, str], user: User) -> Path:
    """Return where the Ray of this user works, or worked last, on this machine."""
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
        return True  # Ray makes it
    # Root may write anywhere, but what root's Ray opens there must not be another user's to replace.
    return user.may(found, stat.S_IWOTH) and (user.uid != 0 or found.st_uid == 0)
