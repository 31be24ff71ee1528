"""The user who runs Ray: the one who typed the command, also behind sudo."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshray.errors import UsageError

#: The highest number is not a uid: for system calls it is -1.
_NO_UID = 2**32 - 1
_MOST_DIGITS = len(str(_NO_UID))


@dataclass(frozen=True)
class User:
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: Path

    @classmethod
    def invoking(cls, environ: Mapping[str, str] = os.environ) -> User:
        """Return the user behind sudo (SUDO_UID) if this process runs as root, else the current user."""
        uid = os.geteuid()
        sudo_uid = environ.get("SUDO_UID", "")
        return cls.by_uid(int(sudo_uid) if uid == 0 and sudo_uid.isdecimal() else uid)

    @classmethod
    def by_uid(cls, uid: int) -> User:
        """Return the user with this id. A user without an entry in the user database has the home ``/``."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return cls(str(uid), uid, uid, (uid,), Path("/"))
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        return cls(entry.pw_name, uid, entry.pw_gid, groups, Path(entry.pw_dir))

    @classmethod
    def named(cls, text: str) -> User:
        """Return the user with this name, or with this id, which needs no entry in the user database.

        Raises:
            UsageError: there is no user of this name.
        """
        if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS and int(text) < _NO_UID:
            return cls.by_uid(int(text))
        try:
            return cls.by_uid(pwd.getpwnam(text).pw_uid)
        except (KeyError, ValueError):
            raise UsageError("no_such_user", f"this machine has no user {text[:40]!r}", hint="use a uid") from None

    @property
    def identity(self) -> dict[str, Any]:
        """The arguments of `subprocess` that start a program as this user; empty if this process does not run as root,
        or the user is root."""
        if os.geteuid() != 0 or self.uid == 0:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": list(self.groups)}

    def has_access(self, found: os.stat_result, for_others: int) -> bool:
        """Return whether a file's mode permits an access by this user; root may do anything.

        Args:
            for_others: the bit that permits the access to others, such as ``stat.S_IWOTH``.
        """
        if self.uid in (0, found.st_uid):
            return self.uid == 0 or bool(found.st_mode & for_others << 6)
        if found.st_gid == self.gid or found.st_gid in self.groups:
            return bool(found.st_mode & for_others << 3)
        return bool(found.st_mode & for_others)

    @contextlib.contextmanager
    def impersonated(self) -> Iterator[None]:
        """Open files with the user's rights within the block. Other threads must not open files meanwhile."""
        if not self.identity:
            yield
            return
        groups = os.getgroups()
        os.setgroups(self.groups)
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)

    def become(self) -> None:
        """Change this process from root to the user, irreversibly.

        Raises:
            PermissionError: the process does not run as root.
        """
        os.setgroups(self.groups)
        os.setgid(self.gid)
        os.setuid(self.uid)
