"""Whether this process can see the programs that hold the sockets of its network namespace.

The containers of a pod share a network namespace and have a process namespace each, and a container usually lacks
CAP_SYS_PTRACE, without which the files of another user's process cannot be read. Then no program is found for a
socket, although one has it.
"""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path("/")
#: PROC_PID_INIT_INO of linux/proc_ns.h: the process namespace of the machine.
_FIRST_NAMESPACE = "pid:[4026531836]"
#: CAP_SYS_PTRACE of linux/capability.h.
_PTRACE = 1 << 19
_CAPABILITIES = re.compile(r"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)


def hides_processes(root: Path = _ROOT) -> bool:
    """Return whether programs of this network namespace may be hidden from this process.

    Args:
        root: the machine's file system.
    """
    try:
        status = (root / "proc/self/status").read_text()
        namespace = str((root / "proc/self/ns/pid").readlink())
    except OSError:
        return False
    found = _CAPABILITIES.search(status)
    return namespace != _FIRST_NAMESPACE or (found is not None and not int(found[1], 16) & _PTRACE)


def shares_machines_network(root: Path = _ROOT) -> bool:
    """Return whether this network namespace has a network card, so that it is the machine's and not a pod's."""
    return any((root / "sys/class/net").glob("*/device"))
