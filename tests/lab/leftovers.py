"""The names that identify a run's resources, and the removal of leftovers of dead runs.

Every host of a run dies with the run: its first process ends when the pipe from the run closes, and the kernel ends the
rest. A killed run can leave its folder of logs and the control groups of its containers; the sweep removes them, and
any process that nevertheless outlived the run.

>>> RunId.parse("meshray-lab-4711-99-two-nats")
RunId(pid=4711, started=99)
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "meshray-lab"
_PATTERN = re.compile(rf"^{PREFIX}-(\d+)-(\d+)(?:-|$)")
#: The folders of control groups, which belong to the whole machine: in version 1 one for each controller.
CGROUPS = Path("/sys/fs/cgroup")
#: The kernel needs a moment to forget the last process of a group, seconds.
_GROUP_ENDS_S = 10


@dataclass(frozen=True)
class RunId:
    """The process that owns a world.

    Attributes:
        pid: its process id.
        started: when it started, in clock ticks since boot, because process ids are reused.
    """

    pid: int
    started: int

    @classmethod
    def mine(cls) -> RunId:
        """Return the id of this process."""
        return cls(os.getpid(), _start_ticks(os.getpid()) or 0)

    @classmethod
    def parse(cls, name: str) -> RunId | None:
        """Return the id at the beginning of a name; None for any other name."""
        found = _PATTERN.match(name)
        return cls(int(found[1]), int(found[2])) if found else None

    def __str__(self) -> str:
        return f"{PREFIX}-{self.pid}-{self.started}"

    @property
    def alive(self) -> bool:
        """Whether the owner still runs."""
        return _start_ticks(self.pid) == self.started


def sweep() -> list[str]:
    """End the processes and remove the folders of dead runs; return what was found."""
    found = []
    for pid, name in _first_processes():
        if _is_dead(name):
            os.kill(pid, signal.SIGKILL)
            found.append(f"process {pid} of {name}")
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        if _is_dead(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
            found.append(str(folder))
    for name in {group.name for group in _groups(f"{PREFIX}-*") if _is_dead(group.name)}:
        remove_cgroups(name)
        found.append(f"control groups {name}")
    return found


def remove_cgroups(name: str) -> None:
    """Remove the control groups of this name, whose processes have ended.

    Raises:
        OSError: one still has a process.
    """
    end = time.monotonic() + _GROUP_ENDS_S
    for group in _groups(name):
        # Another process of the same run may be sweeping, too: os.walk passes over what it has removed.
        for folder in sorted((Path(folder) for folder, _, _ in os.walk(group)), reverse=True):
            while folder.is_dir():
                try:
                    folder.rmdir()
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.05)


def _groups(pattern: str) -> list[Path]:
    """Return the control groups whose names match, in every hierarchy."""
    return [path for place in (".", "*") for path in CGROUPS.glob(f"{place}/{pattern}") if path.is_dir()]


def _is_dead(name: str) -> bool:
    run = RunId.parse(name)
    return run is not None and not run.alive


def _first_processes() -> Iterator[tuple[int, str]]:
    """Yield the first processes of hosts: (pid, the name that `tests.lab.host` gave as the last argument)."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except OSError:
            continue
        if len(words) > 1 and words[-2].endswith("/tests/lab/init.py") and RunId.parse(words[-1]):
            yield int(folder.name), words[-1]


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        # Any other error, such as too many open files, does not show that the process has ended.
        return None
    # The second field is the program's name in parentheses and may contain anything; starttime is field 22.
    return int(stat.rpartition(")")[2].split()[19])
