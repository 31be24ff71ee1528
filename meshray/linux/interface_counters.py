"""The byte counters of a network interface.

>>> byte_counters("meshray0")
ByteCounters(received=81234, sent=4096)
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class ByteCounters(NamedTuple):
    """The bytes that an interface received and sent since it was created."""

    received: int
    sent: int


def byte_counters(interface: str) -> ByteCounters | None:
    """Return the counters of an interface in this thread's network namespace; None if it does not exist."""
    try:
        # The table of this thread, which may be in another network namespace than the process.
        return parse_counters(Path("/proc/thread-self/net/dev").read_text(), interface)
    except OSError:
        return None


def parse_counters(table: str, interface: str) -> ByteCounters | None:
    """Return the counters of an interface in the text of /proc/net/dev (proc(5)); None if it does not list it. Pure."""
    for line in table.splitlines():
        name, colon, numbers = line.partition(":")
        if colon and name.strip() == interface:
            fields = numbers.split()
            return ByteCounters(int(fields[0]), int(fields[8]))
    return None
