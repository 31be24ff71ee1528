"""A second root file system in a host: the machine's disk, below a tmpfs that receives all changes.

A host of the lab shares the machine's disk, except for some folders. What installs packages or boots a machine changes
others, and finds the machine's installed packages only in the machine's /var/lib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.host import Host

#: Where it is mounted in the host.
ROOT = "/var/tmp/disk/root"
#: Never of the disk: what the kernel provides.
_KERNEL = ("/proc", "/sys", "/dev")
_DISK = """
set -e
mkdir -p /var/tmp/disk
mount -t tmpfs disk /var/tmp/disk
cd /var/tmp/disk
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
"""
_USR = """
mkdir upper-usr work-usr
mount -t overlay -o "lowerdir=$0:/usr,upperdir=upper-usr,workdir=work-usr" overlay root/usr
"""
_BIND = """
while [ $# -gt 0 ]; do
    mkdir -p "root$2"
    mount --rbind "$1" "root$2"
    shift 2
done
"""


def mount(
    host: Host, *, shared: Sequence[str], usr: Path | None = None, bound: Mapping[Path, str] | None = None
) -> None:
    """Mount it; it ends with the host.

    Args:
        shared: the host's own folders that are the same inside, as /run.
        usr: a folder whose files lie above those of the machine's /usr.
        bound: folders of the machine, which the host must see (`World.keep`), and where they are inside.
    """
    pairs = [*((folder, folder) for folder in (*_KERNEL, *shared)), *(bound or {}).items()]
    script = _DISK + (_USR if usr else "") + _BIND
    host.run(["sh", "-c", script, str(usr or ""), *(str(path) for pair in pairs for path in pair)])


def command(*words: str) -> list[str]:
    """Return the command that runs another one there."""
    return ["chroot", ROOT, *words]
