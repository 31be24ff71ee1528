"""Whether this process can see the programs that hold the sockets of its network namespace.

The containers of a pod share a network namespace and have a process namespace each, and a container usually lacks
CAP_SYS_PTRACE, without which the files of another user's process cannot be read. Then no program is found for a
socket, although one has it.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_ROOT = Path("/")
#: PROC_PID_INIT_INO of linux/proc_ns.h: the process namespace of the machine.
_FIRST_NAMESPACE = "pid:[4026531836]"
#: CAP_SYS_PTRACE of linux/capability.h.
_PTRACE = 1 << 19
#: managedHostsHeader and managedHostsHeaderWithHostNetwork of the kubelet's kubelet_pods.go.
_POD_HEADER, _MACHINE_HEADER = "# Kubernetes-managed hosts file.", "# Kubernetes-managed hosts file (host network)."
_LONGEST_HEADER = 80
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
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


def shares_machines_network(root: Path = _ROOT, owner: int = 0) -> bool:
    """Return whether this network namespace is the machine's and not a pod's.

    The kubelet says so in the hosts file that it mounts into every container of a pod. A machine may be a container
    without a network card, as in kind and k3d, and a pod may have a card (SR-IOV). Elsewhere a card decides.

    Args:
        root: the machine's file system.
        owner: the only user who may be able to change the hosts file.
    """
    header = _hosts_header(root / "etc/hosts", owner)
    if header in (_POD_HEADER, _MACHINE_HEADER):
        return header == _MACHINE_HEADER
    return any((root / "sys/class/net").glob("*/device"))


def _hosts_header(hosts: Path, owner: int) -> str:
    """Return the first line; empty if users other than the owner could have written it, or there is no such file."""
    try:
        with os.fdopen(os.open(hosts, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), errors="replace") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != owner or found.st_mode & _WRITABLE_BY_OTHERS:
                return ""
            return file.readline(_LONGEST_HEADER).rstrip("\n")
    except OSError:
        return ""
