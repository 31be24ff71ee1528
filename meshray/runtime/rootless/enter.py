"""Runs a command inside a node's namespaces, as the user and without additional rights.

    python -I -m meshray.runtime.rootless.enter PID -- CMD…

PID is any process inside, as seen from outside. This process enters the namespaces in which it is not yet: all of them
if it comes from outside, the rest if the agent's thread for children started it. The module uses only the standard
library, since every start of Ray waits for it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from meshray.runtime.pid1 import shell_code
from meshray.runtime.rootless import syscalls

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: list[str]) -> int:
    """Become the command, or run it as a child if it must be another process; return the exit code."""
    pid, command = int(arguments[0]), arguments[2:]
    cwd = os.getcwd()  # noqa: PTH109 - before the mounts change
    try:
        is_child = _is_in(pid, "pid")
        enter(pid)
    except OSError as error:
        sys.stderr.write(f"error: cannot enter the namespaces of this node: {error.strerror}\n")
        return 126
    if is_child:
        return _become(command, cwd)
    child = os.fork()
    if child == 0:
        syscalls.die_with_parent(signal.SIGKILL)
        os._exit(_become(command, cwd))
    return _wait(child)


def enter(pid: int) -> None:
    """Enter all namespaces of the process ``pid`` in which this one is not. Raises OSError."""
    others = {name: kind for name, kind in syscalls.FILES.items() if not _is_in(pid, name)}
    opened = {kind: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name, kind in others.items()}
    for kind, descriptor in opened.items():
        syscalls.setns(descriptor, kind)
        os.close(descriptor)


def _is_in(pid: int, name: str) -> bool:
    return Path(f"/proc/self/ns/{name}").samefile(f"/proc/{pid}/ns/{name}")


def _become(command: list[str], cwd: str) -> int:
    try:
        os.chdir(cwd)
    except OSError:
        os.chdir("/")
    syscalls.drop_all()
    return execute(command)


def execute(command: list[str]) -> int:
    """Replace this process by the command; return the exit code if that fails."""
    syscalls.restore_signals()
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"error: {command[0]}: {error.strerror}\n")
        return 127


def _wait(child: int) -> int:
    """Return the child's exit code. Signals of the terminal reach the child directly."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    for number in _FORWARDED:
        signal.signal(number, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    return shell_code(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
