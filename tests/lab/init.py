"""The first process of a host (pid 1 of its pid namespace): it sets up the host, then waits until its world ends.

Started by `tests.lab.host` as `unshare --net --pid … python -I init.py NAME`, so only the standard library is here. It
reads one JSON line (`_furniture` of host.py), answers with its process id in the world's namespace, and ends when
standard input closes: that happens however the world ends, and then the kernel ends every process of the host.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Folders that everyone may write; only root may write all others, which everyone may enter.
_DIRECTORY_MODES = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/dev/shm": 0o1777}


def main() -> None:
    """Set up the host, report, and wait."""
    spec = json.loads(sys.stdin.readline())
    # /proc is still the machine's: this link is our process id there.
    pid = str(Path("/proc/self").readlink())
    _mount("-t", "proc", "proc", "/proc")
    socket.sethostname(spec["hostname"])
    _make_private(Path(spec["stage"]), spec)
    os.chdir("/")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # Daemons whose parent ended become ours; with SIGCHLD ignored the kernel reaps them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(pid, flush=True)
    sys.stdin.read()


def _make_private(stage: Path, spec: dict[str, Any]) -> None:
    """Give the host its own /etc, /sys and writable folders, on its own tmpfs."""
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(stage))
    _copy_etc(stage, spec)
    (stage / "sys").mkdir()
    # A network namespace's interfaces are visible in a sysfs that was mounted inside it.
    _mount("-t", "sysfs", "sysfs", str(stage / "sys"))
    _mount("--rbind", "/sys/fs/cgroup", str(stage / "sys/fs/cgroup"))
    folders = ["/etc", "/sys", *spec["private"]]
    for folder in spec["private"]:
        own = stage / folder.lstrip("/")
        own.mkdir(parents=True, exist_ok=True)
        for kept in spec["keep"]:
            if Path(folder) in Path(kept).parents:
                inside = stage / kept.lstrip("/")
                inside.mkdir(parents=True, exist_ok=True)
                _mount("--bind", kept, str(inside))
        own.chmod(_DIRECTORY_MODES.get(folder, 0o755))
    for folder, below in spec["layered"].items():
        _layer(stage, folder, below)
    for path in spec["homes"]:
        home = stage / path.lstrip("/")
        home.mkdir(parents=True, exist_ok=True)
        os.chown(home, spec["person_uid"], spec["person_uid"])
    # The folder that hides the stage itself comes last.
    folders.sort(key=lambda folder: Path(folder) in stage.parents)
    for folder in folders:
        _mount("--rbind", str(stage / folder.lstrip("/")), folder)


def _layer(stage: Path, folder: str, below: list[str]) -> None:
    """Mount the machine's folder, with others above it, below one of the host's own, which receives all writes."""
    name = folder.strip("/").replace("/", "-")
    upper, work = stage / f"{name}-upper", stage / f"{name}-work"
    for own in (upper, work):
        own.mkdir()
    _mount("-t", "overlay", "-o", f"lowerdir={':'.join(below)},upperdir={upper},workdir={work}", "overlay", folder)


def _copy_etc(stage: Path, spec: dict[str, Any]) -> None:
    subprocess.run(["cp", "-a", "/etc", str(stage / "etc")], check=True)
    for name, text in spec["files"].items():
        path = stage / "etc" / name
        path.unlink(missing_ok=True)  # resolv.conf is often a link into /run.
        path.write_text(text)
        path.chmod(0o644)
    for name, line in spec["more_lines"].items():
        with (stage / "etc" / name).open("a") as file:
            file.write(line)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    main()
