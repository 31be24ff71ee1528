"""Check whether an unprivileged user can create namespaces and an interface: a short-lived process tries it.

>>> require_namespaces("sudo meshray join TOKEN")
MeshrayError: a node without root is not possible on this machine: network namespaces (user.max_net_namespaces is 0)

Settings are read only to explain a refusal: distributions have too many of them to predict one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.runtime.rootless import syscalls

#: Time limit, seconds; it usually takes a tenth of a second.
_TIMEOUT_S = 15.0
#: What is tried, one after the other: each requires the previous ones.
USER, NETWORK, INTERFACE, MOUNTS = "user namespaces", "network namespaces", "/dev/net/tun", "mounts of its own"
#: The settings that explain a refusal, and the value that forbids.
_SETTINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    USER: (
        ("user.max_user_namespaces", "0"),
        ("kernel.unprivileged_userns_clone", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
    ),
    NETWORK: (("user.max_net_namespaces", "0"), ("kernel.apparmor_restrict_unprivileged_userns", "1")),
    MOUNTS: (("user.max_mnt_namespaces", "0"), ("user.max_pid_namespaces", "0")),
}
_FIX = {"user.max_user_namespaces": "15000", "user.max_net_namespaces": "15000", "user.max_mnt_namespaces": "15000"}


@dataclass(frozen=True)
class Missing:
    """What the machine does not allow, and the kernel's errno."""

    what: str
    number: int


def find_missing() -> tuple[Missing, ...]:
    """Return what this machine does not allow; empty if a node without root can run. Nothing is left behind.

    Raises:
        MeshrayError: ``no_namespaces``: the trial itself failed.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", __name__],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise MeshrayError("no_namespaces", "the test whether namespaces can be created failed to run") from None
    return tuple(Missing(str(what), int(number)) for what, number in found)


def require_namespaces(with_root: str) -> None:
    """Raise MeshrayError ``no_namespaces`` or ``no_tun`` with all that is missing, and what to request from whom.

    Args:
        with_root: the command for a node with root, which needs none of it.
    """
    missing = find_missing()
    if missing:
        raise refusal(missing, _setting, with_root)


def refusal(missing: tuple[Missing, ...], setting: Callable[[str], str], with_root: str) -> MeshrayError:
    """Return the error for all that is missing (pure).

    Args:
        setting: returns the value of a sysctl, empty if it does not exist.
    """
    texts, fixes = [], []
    for item in missing:
        cause, fix = _cause_and_fix(item, setting)
        texts.append(f"{item.what} ({cause})")
        fixes += [fix] if fix and fix not in fixes else []
    request = f"ask the administrator of this machine for: {'; '.join(fixes)}. " if fixes else ""
    code = "no_tun" if [item.what for item in missing] == [INTERFACE] else "no_namespaces"
    return MeshrayError(
        code,
        f"a node without root is not possible on this machine: {', '.join(texts)}",
        hint=f"{request}With root none of this is needed: {with_root}",
    )


def _cause_and_fix(item: Missing, setting: Callable[[str], str]) -> tuple[str, str]:
    """Return the cause, and what the administrator can do."""
    reason = os.strerror(item.number).lower()
    if item.what == INTERFACE:
        if item.number == errno.ENOENT:
            return "is missing", "modprobe tun"
        return reason, "chmod 0666 /dev/net/tun"
    for name, forbidden in _SETTINGS.get(item.what, ()):
        if setting(name) == forbidden:
            allowed = _FIX.get(name, "0" if forbidden == "1" else "1")
            return f"{name} is {forbidden}", f"sysctl -w {name}={allowed}"
    if item.number in (errno.ENOSPC, errno.EUSERS):
        return "the limit is reached", f"more {item.what}"
    return reason, (
        f"{item.what} for ordinary users; in a container its seccomp profile forbids them, and in a pod only a user "
        "namespace allows them (hostUsers: false)"
    )


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return ""


def _probe() -> list[tuple[str, int]]:
    """Return what is missing, in a process of its own. Without namespaces, /dev/net/tun is only opened."""
    from meshray.wireguard.engines import open_tun

    missing = []
    what = USER
    try:
        syscalls.unshare_user()
        what = NETWORK
        syscalls.unshare(syscalls.NEWNET)
        syscalls.bring_up("lo")
        what = MOUNTS
        _probe_mounts()
    except OSError as error:
        missing.append((what, error.errno or 0))
    try:
        if what == MOUNTS:
            os.close(open_tun("mray%d", offload=True))
        else:
            os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        missing.append((INTERFACE, error.errno or 0))
    return missing


def _probe_mounts() -> None:
    syscalls.unshare(syscalls.NEWNS | syscalls.NEWIPC | syscalls.NEWPID)
    syscalls.mount("none", "/", "", syscalls.RECURSIVE | syscalls.SLAVE)
    read_end, write_end = os.pipe()
    pid = os.fork()  # only children are in the new pid namespace
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(write_end, str(_mount_error()).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    number = int(os.read(read_end, 16) or errno.EPERM)
    if number:
        raise OSError(number, os.strerror(number))


def _mount_error() -> int:
    try:
        syscalls.mount("proc", "/proc", "proc", syscalls.NOSUID | syscalls.NODEV | syscalls.NOEXEC)
        syscalls.mount("tmpfs", "/dev/shm", "tmpfs", syscalls.NOSUID | syscalls.NODEV)  # noqa: S108
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


if __name__ == "__main__":
    signal.alarm(int(_TIMEOUT_S))
    sys.stdout.write(json.dumps(_probe()))
