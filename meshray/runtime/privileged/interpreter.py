"""The Python that runs meshray as root: one that only root can change, and for which the copied packages were built.

The candidates, in this order: the base interpreter of this environment, the system's of the same version, one that uv
installs where only root writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshray.linux.capture import run_captured
from meshray.linux.trusted_files import SYSTEM_FOLDERS, first_untrusted
from meshray.linux.user import User

_PROBE_S = 20.0
#: uv fetches some 30 MB.
_UV_S = 300.0
#: Imports what meshray needs, and prints the files that would be loaded into root's process.
_PROBE = """
import asyncio, ctypes, json, os, sqlite3, ssl, sys, sysconfig
maps = {line.split(None, 5)[5].rstrip() for line in open("/proc/self/maps") if len(line.split(None, 5)) == 6}
print(json.dumps({
    "tag": sys.implementation.cache_tag, "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
    "paths": [sys.executable, *filter(os.path.exists, sys.path), *(item for item in maps if item.startswith("/"))],
}))
"""


@dataclass(frozen=True)
class Rejected:
    """An interpreter that cannot be used, and why."""

    python: Path
    reason: str


def find(root: Path) -> tuple[Path | None, list[Rejected]]:
    """Return an interpreter that can be trusted, and the rejected ones.

    Args:
        root: where uv installs one, if no other can be used.
    """
    rejected: list[Rejected] = []
    for python in _candidates(root):
        reason = rejection_reason(python)
        if not reason:
            return python, rejected
        rejected.append(Rejected(python, reason))
    built = _by_uv(root)
    if isinstance(built, str):
        return None, [*rejected, Rejected(Path("uv"), built)]
    reason = rejection_reason(built)
    return (built, rejected) if not reason else (None, [*rejected, Rejected(built, reason)])


def _candidates(root: Path) -> Iterator[Path]:
    """Yield the candidates; those that all users may execute come first, since users run meshray, too."""
    version = f"python3.{sys.version_info[1]}"
    own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    system = [Path(folder, version) for folder in SYSTEM_FOLDERS.split(":")]
    earlier = sorted((root / "python").glob(f"*/bin/{version}"))
    existing = [path for path in dict.fromkeys((own, *system, *earlier)) if path.exists()]
    yield from sorted(existing, key=lambda path: not _is_open(path))


def _is_open(path: Path) -> bool:
    """Return whether every user may reach and execute the file."""
    try:
        return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))
    except OSError:
        return False


def rejection_reason(python: Path) -> str:
    """Return why root must not run meshray with this interpreter; empty: it may."""
    if (untrusted := first_untrusted(python)) is not None:
        return f"{untrusted} can be changed by users other than root"
    try:
        command = [str(python), "-I", "-S", "-c", _PROBE]
        done = run_captured(command, env={"PATH": SYSTEM_FOLDERS}, timeout_s=_PROBE_S)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return "it does not start, or a module that meshray needs is missing"
    if found["tag"] != sys.implementation.cache_tag or found["suffix"] != _own_suffix():
        return "the packages of this environment were built for another one"
    untrusted_parts = (untrusted for path in found["paths"] if (untrusted := first_untrusted(Path(path))) is not None)
    return next((f"it loads {untrusted}, which users other than root can change" for untrusted in untrusted_parts), "")


def _own_suffix() -> str:
    import sysconfig

    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _by_uv(root: Path) -> Path | str:
    """Install Python with a copy of uv, because root runs no file of a user; return its path, or why that failed."""
    version = f"3.{sys.version_info[1]}"
    uv = _copied("uv", root)
    if uv is None:
        return "uv, which could install one, is not in this environment"
    folder = root / "python"
    try:
        done = run_captured(
            [str(uv), "python", "install", "--no-bin", "--no-config", "--install-dir", str(folder), version],
            env={"PATH": SYSTEM_FOLDERS, "HOME": "/root", **_proxies()},
            timeout_s=_UV_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"uv python install: {error}"
    found = sorted(folder.glob(f"*/bin/python{version}"))
    if done.returncode != 0 or not found:
        lines = done.stderr.strip().splitlines() or ["it installed nothing"]
        return f"uv python install {version}: {lines[-1][:200]}"
    return found[-1].resolve()


def _proxies() -> dict[str, str]:
    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE")
    return {name: os.environ[name] for name in names if name in os.environ}


def _copied(name: str, root: Path) -> Path | None:
    """Copy a program of this environment to a file of root; return it, or None if the environment lacks it."""
    source = Path(sys.prefix) / "bin" / name
    try:
        # Root must not open what the environment's owner could not read.
        owner = User.by_uid(source.lstat().st_uid)
        done = subprocess.run(
            ["cat", str(source)],
            env={"PATH": SYSTEM_FOLDERS},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            **owner.identity,
        )
    except OSError:
        return None
    if done.returncode != 0:
        return None
    folder = root / "tools"
    folder.mkdir(mode=0o755, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(done.stdout).hexdigest()[:12]}"
    if not path.exists():
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
        with os.fdopen(handle, "wb") as file:
            file.write(done.stdout)
    return path
