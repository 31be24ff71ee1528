"""The process that holds a node's namespaces; it outlives agents and is adopted by the next one.

    python -m meshray.runtime.rootless.holder RUN SCRATCH [UDP]

    holder (outside) ──► first process (pid 1 inside): mounts, loopback; waits for the holder's end
                    └──► pasta or slirp4netns, if installed: connects the inside to the internet

With UDP, WireGuard is inside as well and listens on that port (0: on any), which pasta forwards.

The holder describes the namespaces in RUN/namespace.json when they are ready. When the holder ends, for whatever
reason, the first process sees its pipe close and ends too, and the kernel ends every process and mount inside. The
module uses only the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meshray.runtime.rootless import syscalls
from meshray.runtime.rootless.internet import Helper, find_helper

#: Ray's folder on every machine: a worker uses the path of its head.
RAY_FOLDER = Path("/tmp/ray")  # noqa: S108
#: Pause before a helper that ended is started again, seconds.
_RESTART_PAUSE_S = 10.0
#: What the first process writes when all mounts are ready.
_READY = "ready"
_WATCHED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


@dataclass(frozen=True)
class Folders:
    """``run`` as `meshray.home.Home.run`; ``scratch``: on disk, for Ray's logs and what it spills."""

    run: Path
    scratch: Path


def main(arguments: list[str]) -> int:
    """Hold the namespaces until a signal comes, or until the first process has ended."""
    folders = Folders(*map(Path, arguments[:2]))
    udp_port = int(arguments[2]) if len(arguments) > 2 else None
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    syscalls.adopt_orphans()
    helper = find_helper(os.environ)
    lifeline, alive = os.pipe()
    read_end, write_end = os.pipe()
    _fork(lambda: _make_namespaces(folders, helper, lifeline, write_end, (alive, read_end)))
    os.close(lifeline)
    os.close(write_end)
    pid = _read_pid(read_end)
    if not pid:
        return 1
    try:
        found = {"first": pid, "internet": _name(helper), "engine_inside": udp_port is not None}
        _write(folders.run / "namespace.json", {"holder": os.getpid(), **found})
        _hold(pid, helper, udp_port or 0)
    finally:
        (folders.run / "namespace.json").unlink(missing_ok=True)
        _end(pid)
        os.close(alive)
    return 0


def _read_pid(read_end: int) -> int:
    """Return the pid of the first process when it is ready; 0 if something failed, which is in the log."""
    with os.fdopen(read_end) as lines:
        words = set(lines.read().split())
    # Its parent writes the pid, it writes "ready" itself: either may come first.
    numbers = words - {_READY}
    return int(numbers.pop()) if _READY in words and len(numbers) == 1 else 0


def _hold(first: int, helper: Helper | None, udp_port: int) -> None:
    helper_pid, due = 0, time.monotonic()
    while True:
        if helper is not None and not helper_pid and time.monotonic() >= due:
            helper_pid = _fork(lambda: _help(helper, first, udp_port))
        received = signal.sigtimedwait(_WATCHED, _RESTART_PAUSE_S)
        if received is not None and received.si_signo != signal.SIGCHLD:
            if helper_pid:
                os.kill(helper_pid, signal.SIGTERM)
            return
        for ended in _ended():
            if ended == first:
                return
            if ended == helper_pid:
                helper_pid, due = 0, time.monotonic() + _RESTART_PAUSE_S


def _help(helper: Helper, first: int, udp_port: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    syscalls.restore_signals()
    syscalls.die_with_parent(signal.SIGKILL)
    os.execv(helper.program, helper.command(first, udp_port))  # noqa: S606 - no shell is wanted


def _ended() -> Iterator[int]:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _make_namespaces(
    folders: Folders, helper: Helper | None, lifeline: int, write_end: int, to_close: tuple[int, ...]
) -> None:
    """Create the namespaces and the first process, and end: the holder adopts that."""
    for descriptor in to_close:
        os.close(descriptor)
    syscalls.unshare_user()
    syscalls.unshare(syscalls.NEWNET | syscalls.NEWNS | syscalls.NEWIPC | syscalls.NEWPID)
    syscalls.bring_up("lo")
    pid = _fork(lambda: _first_process(folders, helper, lifeline, write_end))
    os.write(write_end, f"{pid}\n".encode())


def _first_process(folders: Folders, helper: Helper | None, lifeline: int, write_end: int) -> None:
    # If SIGCHLD is ignored, the kernel reaps every orphan in here.
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    _mount_all(folders, helper)
    os.write(write_end, f"{_READY}\n".encode())
    os.close(write_end)
    os.chdir("/")
    os.read(lifeline, 1)


def _mount_all(folders: Folders, helper: Helper | None) -> None:
    syscalls.mount("none", "/", "", syscalls.RECURSIVE | syscalls.SLAVE)
    syscalls.mount("proc", "/proc", "proc", syscalls.NOSUID | syscalls.NODEV | syscalls.NOEXEC)
    syscalls.mount("tmpfs", "/dev/shm", "tmpfs", syscalls.NOSUID | syscalls.NODEV, "mode=1777")  # noqa: S108
    own = folders.scratch / "ray"
    own.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another node of this machine may be as fast
        RAY_FOLDER.mkdir()
        RAY_FOLDER.chmod(0o1777)  # Ray of other users can use it
    syscalls.mount(str(own), str(RAY_FOLDER), "", syscalls.BIND)
    _replace(Path("/etc/resolv.conf"), folders.run / "resolv.conf", resolver_text(helper))
    hosts = Path("/etc/hosts")
    if hosts.is_file():
        _replace(hosts, folders.run / "hosts", hosts_text(hosts.read_text(), socket.gethostname()))
    Path("/proc/sys/net/ipv4/ping_group_range").write_text(f"{os.getegid()} {os.getegid()}")


def resolver_text(helper: Helper | None) -> str:
    """Return /etc/resolv.conf for inside: the helper's name server, or one that refuses at once (pure)."""
    if helper is None:
        return "# meshray: no connection to the internet\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
    return f"# meshray: {helper.name} asks the machine's own resolver\nnameserver {helper.nameserver}\n"


def hosts_text(hosts: str, name: str) -> str:
    """Return /etc/hosts for inside, in which the machine's own name resolves: else Ray starts slowly (pure)."""
    known = {word for line in hosts.splitlines() for word in line.partition("#")[0].split()[1:]}
    return hosts if name in known else f"{hosts.rstrip()}\n127.0.1.1 {name}\n".lstrip()


def _replace(target: Path, own: Path, text: str) -> None:
    if target.exists():
        own.write_text(text)
        syscalls.mount(str(own), str(target.resolve()), "", syscalls.BIND)


def _fork(run: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        run()
        status = 0
    except OSError as error:
        sys.stderr.write(f"error: {error.strerror}: {error.filename or ''}\n")
        sys.stderr.flush()
    finally:
        os._exit(status)


def _name(helper: Helper | None) -> str:
    return helper.name if helper is not None else ""


def _write(path: Path, value: object) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(value))
    unfinished.rename(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
