"""The first process of a container (pid 1), which starts the program as its child.

The kernel makes pid 1 the parent of every orphan, and ignores every signal to it that has no handler.

    pid 1   forwards signals, reaps processes that ended, ends with the program's exit code
      └── meshray join … --block
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

#: Signals that users and container engines send. All others stop, trace or kill a process anyway.
PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)


def run_as_first() -> None:
    """Return in a child process, which becomes the program. This process ends with the child."""
    # A signal between the fork and the handlers would be lost: it waits until there are some.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return
    for number in PASSED_ON:
        signal.signal(number, lambda received, frame: _pass_on(child, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    os._exit(_reap_until(child))


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _reap_until(child: int) -> int:
    """Reap every process that ends; return the child's exit code when the child ends."""
    while True:
        pid, status = os.wait()
        if pid == child:
            sys.stderr.flush()
            return shell_code(status)


def shell_code(status: int) -> int:
    """Return a shell's exit code for a status of `os.wait`: for a signal, 128 plus its number."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
