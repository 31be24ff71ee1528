"""The memory and processor time of a process.

>>> process_usage(os.getpid()).resident_bytes
57671680
"""

from __future__ import annotations

import os
from typing import NamedTuple

from meshray.linux import procfs

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ProcessUsage(NamedTuple):
    """The memory that the process holds now, and the processor time that it has used."""

    resident_bytes: int
    cpu_seconds: float


def process_usage(pid: int) -> ProcessUsage | None:
    """Return the usage of a process; None if it has ended."""
    # The program's name is in parentheses and may contain spaces and parentheses; see proc(5).
    fields = procfs.read(pid, "stat").rpartition(b")")[2].split()
    if len(fields) < 22:
        return None
    return ProcessUsage(int(fields[21]) * _PAGE_BYTES, (int(fields[11]) + int(fields[12])) / _TICKS_PER_S)
