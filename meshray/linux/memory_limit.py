"""The memory limits of a process's control groups (cgroups), version 1 or 2, and the kernel's kills there.

A container, a systemd unit or a batch system limits memory by control groups. Every group above the process's own
counts too; the one with the least free memory is decisive.

>>> MemoryLimit("/docker/1f0c", used=950, limit=1000).share
0.95
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


@dataclass(frozen=True)
class _Files:
    """Names of files in a group's folder (cgroup-v2.rst, cgroup-v1/memory.rst).

    Attributes:
        reclaimable: the key of ``memory.stat`` for file pages that the kernel can drop at once.
        events: the file with ``oom_kill``, the processes of the group that the kernel killed for lack of memory.
    """

    limit: str
    usage: str
    reclaimable: str
    events: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control")
_V2 = _Files("memory.max", "memory.current", "inactive_file", "memory.events")


@dataclass(frozen=True)
class MemoryLimit:
    """The memory of a group.

    Attributes:
        group: its path, as far as it is visible here.
        used: bytes that the kernel cannot drop at once, counted as the kubelet and Ray count them.
        limit: bytes.
    """

    group: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        """The used share of the limit."""
        return self.used / self.limit if self.limit else 0.0


def decisive_limit(pid: int, root: Path = _ROOT) -> MemoryLimit | None:
    """Return the limit that the process reaches first; None if none is below the machine's memory.

    Args:
        root: the root of the file system, for tests.
    """
    whole = _machine_memory(root)
    limits = [_limit(folder, files, group) for folder, files, group in _groups(pid, root)]
    below = [one for one in limits if one is not None and (not whole or one.limit < whole)]
    return min(below, key=lambda one: one.limit - one.used, default=None)


def kills_file(pid: int, root: Path = _ROOT) -> Path | None:
    """Return the file in which the kernel counts what it kills in this process's own group; None if there is none."""
    return next((folder / files.events for folder, files, _ in _groups(pid, root)), None)


def kills(file: Path) -> int | None:
    """Return how many processes of the group the kernel killed for lack of memory, the machine's or a group's, since
    the group exists; None if the file does not contain it."""
    return _value(file, "oom_kill")


def _groups(pid: int, root: Path) -> Iterator[tuple[Path, _Files, str]]:
    """Yield the folder, its files and the name of the process's memory group, then those of the groups above it."""
    try:
        lines = (root / f"proc/{pid}/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # hierarchy-ID:controller-list:cgroup-path (cgroups(7))
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        files = _V1 if controllers else _V2
        for base, mount_point in _mounts(mounts, "cgroup" if controllers else "cgroup2"):
            inner, top = _below(path, base), root / mount_point.lstrip("/")
            for part in (inner, *inner.parents):
                # The root of version 2 has no limit, and a hierarchy without the memory controller has none anywhere.
                if (top / part / files.usage).exists():
                    yield top / part, files, str("/" / part)


def _mounts(lines: list[str], kind: str) -> Iterator[tuple[str, str]]:
    """Yield (the group at the mount's root, mount point) of each hierarchy of this kind that can have memory."""
    for line in lines:
        # ID parent major:minor root mount-point options … - type source super-options (proc_pid_mountinfo(5))
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if len(fields) < 5 or len(tail) < 3 or tail[0] != kind:
            continue
        if kind == "cgroup2" or "memory" in tail[2].split(","):
            yield fields[3], fields[4]


def _below(path: str, base: str) -> PurePosixPath:
    """Return the group's path below the mount's root, which in a container may be the group itself.

    >>> _below("/docker/1f0c/job", "/docker/1f0c"), _below("/docker/1f0c", "/")
    (PurePosixPath('job'), PurePosixPath('docker/1f0c'))
    """
    try:
        inner = PurePosixPath(path).relative_to(base)
    except ValueError:
        return PurePosixPath()
    # "/../…" is outside what this namespace shows: the mount's root is the nearest visible group.
    return PurePosixPath() if ".." in inner.parts else inner


def _limit(folder: Path, files: _Files, group: str) -> MemoryLimit | None:
    try:
        limit, usage = (folder / files.limit).read_text().strip(), (folder / files.usage).read_text().strip()
    except OSError:  # The group has ended.
        return None
    if not (limit.isdecimal() and usage.isdecimal()):  # "max"
        return None
    droppable = _value(folder / "memory.stat", files.reclaimable) or 0
    return MemoryLimit(group, max(0, int(usage) - droppable), int(limit))


def _value(file: Path, key: str) -> int | None:
    """Return a number of a file that has a key and a value in each line."""
    try:
        found = re.search(rf"^{key} (\d+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def _machine_memory(root: Path) -> int:
    """Return the machine's memory in bytes; 0 if it is not known."""
    try:
        found = re.search(r"^MemTotal:\s*(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
