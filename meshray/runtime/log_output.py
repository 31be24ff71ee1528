"""Where agent and coordinator log: to a file, which `meshray logs` shows, and also to a supervisor that reads logs.

standard error is the journal, a pipe or that of pid 1   ──► also there
descendant of a node's container's first process         ──► also to its standard error: `docker logs`, `kubectl logs`
a terminal, a file                                       ──► the file only
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from meshray.runtime.container.ancestry import first_process
from meshray.runtime.log_format import formatter, set_levels

#: The number of an open descriptor to which the agent lets the coordinator log as well.
DESCRIPTOR = "MESHRAY_LOG_FD"
_STDERR = 2
#: A write of at most this many bytes to a pipe that is ready does not block (POSIX's PIPE_BUF).
_ONE_WRITE = select.PIPE_BUF


class DescriptorHandler(logging.Handler):
    """Writes lines to a descriptor and never waits for its reader.

    Lines for which there is no room are dropped, and their number is written when there is room again.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._dropped = 0
        self._is_within_line = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or drop it."""
        if self._dropped:
            text = f"{self._dropped} log records were dropped because their reader was too slow"
            if self._write(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (), None)):
                self._dropped = 0
        if self._dropped or not self._write(record):
            self._dropped += 1

    def _write(self, record: logging.LogRecord) -> bool:
        start = "\n" if self._is_within_line else ""
        data = f"{start}{self.format(record)}\n".encode(errors="backslashreplace")
        try:
            for place in range(0, len(data), _ONE_WRITE):
                if not self._is_ready():
                    return False
                os.write(self._descriptor, data[place : place + _ONE_WRITE])
                self._is_within_line = place + _ONE_WRITE < len(data)
        except OSError:  # the reader has gone
            return False
        return True

    def _is_ready(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return any(event & select.POLLOUT for _, event in poll.poll(0))


def start_logging(handler: logging.Handler, environ: Mapping[str, str], beside: int | None) -> None:
    """Send the log of this process to the handler, and to the descriptor ``beside`` if there is one.

    Raises:
        UsageError: as `meshray.runtime.log_format.require_valid` does.
    """
    handler.setFormatter(formatter(environ))
    handlers = [handler]
    if beside is not None:
        other = DescriptorHandler(beside)
        other.setFormatter(formatter(environ, journal=is_journal(beside, environ)))
        handlers.append(other)
    logging.basicConfig(handlers=handlers)
    set_levels(environ)


def find_listener(environ: Mapping[str, str]) -> int | None:
    """Return a new descriptor on which a supervisor reads this process's log; None if there is none.

    Programs that this process starts inherit it only if they are given its number.
    """
    descriptor = sys.stderr.fileno()
    if _is_listened_to(descriptor, environ):
        return os.dup(descriptor)
    first = first_process()
    with contextlib.suppress(OSError):
        if first is not None:
            return os.open(f"/proc/{first}/fd/{_STDERR}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    return None


def given_descriptor(environ: Mapping[str, str]) -> int | None:
    """Return the descriptor that the agent gave to this process; None if it gave none."""
    number = environ.get(DESCRIPTOR, "")
    if not number.isdecimal():
        return None
    try:
        os.fstat(int(number))
    except (OSError, OverflowError):
        return None
    os.set_inheritable(int(number), False)
    return int(number)


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Return whether this is the stream to the journal that systemd named (JOURNAL_STREAM, systemd.exec(5))."""
    try:
        about = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{about.st_dev}:{about.st_ino}"


def _is_listened_to(descriptor: int, environ: Mapping[str, str]) -> bool:
    try:
        about = os.fstat(descriptor)
        if os.isatty(descriptor):
            return False  # a user is watching, for whom progress and errors are meant
        if stat.S_ISFIFO(about.st_mode) or is_journal(descriptor, environ):
            return True
        first = Path(f"/proc/1/fd/{_STDERR}").stat()
    except OSError:
        return False
    return (first.st_dev, first.st_ino) == (about.st_dev, about.st_ino) and not stat.S_ISCHR(about.st_mode)
