"""The first process of a container (pid 1): the kernel makes it the parent of every orphan, and ignores for it every
signal without a handler. So the program itself runs as its child.

    pid 1   passes signals on, reaps whoever ended, ends with the program's exit code
      └── meshray join … --block
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

#: What people and container engines send. The rest stops, traces or kills a process itself.
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
    """Returns in a child, which goes on as the program; this process ends with it."""
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
    """Waits for everybody who ends; returns the child's exit code."""
    while True:
        pid, status = os.wait()
        if pid == child:
            sys.stderr.flush()
            return shell_code(status)


def shell_code(status: int) -> int:
    """The exit code, as a shell would name it, of what `os.wait` told: a signal's is 128 more than its number."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
