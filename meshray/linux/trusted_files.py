"""Check that only root can change a file that root executes, imports or opens by path.

>>> first_untrusted(Path("/usr/bin/python3"))
>>> first_untrusted(Path("/home/ann/ray/bin/python"))
PosixPath('/home/ann')

The rule does not apply to other users: they may change what they run.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from meshray.errors import MeshrayError

#: sudo, cron and units may omit these from PATH.
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The number of symbolic links that the kernel follows (path_resolution(7)).
_MAX_LINKS = 40
_ACCESS_LIST = "system.posix_acl_access"
_ROOT = 0


def is_root() -> bool:
    """Return whether this process has root's rights on this machine. Root in a user namespace is another user outside
    (user_namespaces(7)), and sees root's files as those of nobody."""
    if os.geteuid() != _ROOT:
        return False
    try:
        lines = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return True
    return any(inside == "0" and outside == "0" for inside, outside, _ in lines)


def first_untrusted(path: Path, uid: int = _ROOT) -> Path | None:
    """Return the first component of the path that another user could change, or None.

    The components are all folders and symbolic links from the root of the file system, and the file itself.

    Args:
        path: an absolute path. A missing file is as weak as its folder.
        uid: the user who may own the components, besides root.
    """
    owners = frozenset({_ROOT, uid})
    current, links = Path("/"), 0
    parts = list(reversed(path.parts[1:]))
    if (found := _untrusted(current, owners)) is not None:
        return found
    while parts:
        part = parts.pop()
        if part == "..":
            current = current.parent
            continue
        current /= part
        try:
            status = current.lstat()
        except OSError:
            return None  # its folder was checked, and only its owner can create the file
        if not stat.S_ISLNK(status.st_mode):
            if (found := _untrusted(current, owners)) is not None:
                return found
            continue
        # A link has no mode: it can be changed by users who can change its folder, and in a sticky folder by its owner.
        links += 1
        if status.st_uid not in owners or links > _MAX_LINKS:
            return current
        target = current.readlink()
        current = Path("/") if target.is_absolute() else current.parent
        parts.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    return None


def _untrusted(path: Path, owners: frozenset[int]) -> Path | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    mode = status.st_mode
    # In a sticky folder only owners can rename or remove entries, and each entry is checked as well.
    is_shared = stat.S_ISDIR(mode) and bool(mode & stat.S_ISVTX)
    if status.st_uid not in owners or (mode & stat.S_IWOTH and not is_shared):
        return path
    if mode & stat.S_IWGRP and not is_shared and not _is_empty(status.st_gid, path, owners):
        return path
    return None


def _is_empty(gid: int, path: Path, owners: frozenset[int]) -> bool:
    """Return whether the group with write access has no other members. With an ACL, the group bits have another
    meaning."""
    try:
        if os.getxattr(path, _ACCESS_LIST, follow_symlinks=False):
            return False
    except OSError:
        pass
    return gid == _ROOT or _members(gid) <= owners


@lru_cache(64)
def _members(gid: int) -> frozenset[int]:
    try:
        names = grp.getgrgid(gid).gr_mem
    except KeyError:
        names = []
    found = {entry.pw_uid for entry in pwd.getpwall() if entry.pw_gid == gid or entry.pw_name in names}
    return frozenset(found)


def find_program(name: str, environ: Mapping[str, str], *, on_path_only: bool = False) -> Path | None:
    """Return the program of this name: on PATH and, for root, in the system's folders. Root ignores programs that other
    users can change.

    Args:
        name: a name or an absolute path.
        on_path_only: search the system's folders only if they are on PATH.
    """
    as_root = is_root()
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    if as_root and not on_path_only:
        folders += SYSTEM_FOLDERS.split(os.pathsep)
    # A relative folder of PATH depends on the working folder, so it is ignored. An absolute name stays the same.
    for path in (Path(folder, name) for folder in dict.fromkeys(folders)):
        is_program = path.is_absolute() and path.is_file() and os.access(path, os.X_OK)
        if is_program and (not as_root or first_untrusted(path) is None):
            return path
    return None


def require_trusted(path: Path, what: str) -> None:
    """Raise MeshrayError ``untrusted`` if root is about to use a file that others can change.

    Args:
        what: the beginning of the message.
    """
    if not is_root() or (untrusted := first_untrusted(path)) is None:
        return
    raise MeshrayError(
        "untrusted",
        f"{what} {path} would run as root, and {untrusted} can be changed by {_owner_name(untrusted)}",
        hint=f"ls -ld {untrusted}",
    )


def _owner_name(path: Path) -> str:
    status = path.lstat()
    if status.st_uid != _ROOT:
        try:
            return pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            return f"user {status.st_uid}"
    return "others" if status.st_mode & stat.S_IWOTH else f"members of group {status.st_gid}"
