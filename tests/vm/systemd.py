"""A host whose first process is a real systemd, with its own units and nothing else to start.

    with systemd_on(host) as inside:
        inside.run(["systemctl", "start", "meshray"])

It is in its own control group, which is the root of its cgroup namespace: a systemd moves every process that it finds
in its root, so it must never see the machine's.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.host import Host, Result
from tests.lab.waiting import wait_until

CGROUPS = Path("/sys/fs/cgroup")
UNITS = "/etc/systemd/system"
#: The dependencies of units by default, and those of ours; here all of them are active at once.
TARGETS = ("sysinit", "basic", "multi-user", "network-online", "shutdown", "rescue", "emergency")
#: In the control group that was created for it; a process that is already inside enters the namespace.
BOOT = """
set -eu
echo $$ > "$1/cgroup.procs"
exec unshare --pid --mount --cgroup --fork --kill-child --mount-proc sh -euc '
    umount --lazy /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec env -i container=meshray-test SYSTEMD_UNIT_PATH=/etc/systemd/system PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
        /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no'
"""


class Systemd:
    """Commands beside a systemd that runs in a host."""

    def __init__(self, host: Host, pid: str) -> None:
        self._host = host
        self._pid = pid

    def run(self, argv: Sequence[str | Path], **options: Any) -> Result:
        """Run a command in systemd's namespaces, like `Host.run`."""
        return self._host.run(
            ["nsenter", f"--target={self._pid}", "--pid", "--mount", "--cgroup", "--", *argv], **options
        )

    def property(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run(["systemctl", "show", "--property", name, "--value", unit]).stdout.strip()


def can_run() -> bool:
    """Return whether a control group can be created for it: the unified hierarchy is at its usual place."""
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", CGROUPS], capture_output=True, text=True, check=False
    )
    return kind.stdout.strip() == "cgroup2fs" and os.access("/lib/systemd/systemd", os.X_OK)


def _pid(host: Host) -> str:
    """Return systemd's process id in the host; empty while there is none."""
    return host.run(["pgrep", "--exact", "systemd"], check=False).stdout.strip()


@contextmanager
def systemd_on(host: Host) -> Iterator[Systemd]:
    """Boot systemd in a host; it ends with the block, and its control groups are removed."""
    group = CGROUPS / f"meshray-test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    host.shell(f"rm -rf {UNITS} && mkdir -p {UNITS} /run/systemd/system")
    for target in TARGETS:
        host.path(f"{UNITS}/{target}.target").write_text("[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n")
    process = host.popen(["sh", "-c", BOOT, "boot", group], name="systemd")
    try:
        pid = host.wait_until(lambda: _pid(host), 60, "systemd's process")
        inside = Systemd(host, pid)
        ready = ["systemctl", "is-active", "multi-user.target"]
        host.wait_until(lambda: inside.run(ready, check=False).returncode == 0, 60, "multi-user.target")
        yield inside
    finally:
        (group / "cgroup.kill").write_text("1")
        process.wait(30)
        # A killed process leaves its group only when it is reaped, a moment later.
        wait_until(lambda: "populated 0" in (group / "cgroup.events").read_text(), 30, "the group to be empty")
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()
