"""The counters of a network interface.

>>> interface_counters("meshray0").received_bytes
81234
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class InterfaceCounters(NamedTuple):
    """What an interface received and sent since it was created."""

    received_bytes: int
    receive_errors: int
    receive_drops: int
    sent_bytes: int
    send_errors: int
    send_drops: int


def interface_counters(interface: str) -> InterfaceCounters | None:
    """Return the counters of an interface in this thread's network namespace; None if it does not exist."""
    try:
        # The table of this thread, which may be in another network namespace than the process.
        return parse_counters(Path("/proc/thread-self/net/dev").read_text(), interface)
    except OSError:
        return None


def parse_counters(table: str, interface: str) -> InterfaceCounters | None:
    """Return the counters of an interface in the text of /proc/net/dev (proc(5)); None if it does not list it. Pure."""
    for line in table.splitlines():
        name, colon, numbers = line.partition(":")
        if colon and name.strip() == interface:
            fields = list(map(int, numbers.split()))
            return InterfaceCounters(fields[0], fields[2], fields[3], fields[8], fields[10], fields[11])
    return None
