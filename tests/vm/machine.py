"""A kernel that has WireGuard: this machine's own, else one in QEMU that boots on this machine's files.

    >>> kernel = find()                                        # doctest: +SKIP
    >>> kernel.start(["ip", "link", "add", "wg0", "type", "wireguard"]).wait()   # doctest: +SKIP

virtme-ng boots Debian's plain kernel (the cloud one lacks 9p) on this machine's root file system: read-only, with what
is written to /etc, /home, /opt, /srv, /tmp, /usr and /var kept in the guest's memory, and an empty /run. Without KVM
that takes about 20 s, so all tests of this folder share one boot (see conftest.py).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]

#: The requirements of the guest, by the program or file that shows their presence, with their Debian packages.
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "udevadm": "udev",
}


class MissingError(Exception):
    """No kernel with WireGuard is available here; the message names what is missing."""


@dataclass(frozen=True)
class Kernel:
    """A kernel with WireGuard.

    Attributes:
        image: the image that QEMU boots; None: the running kernel has WireGuard.
    """

    image: Path | None

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs argv as root under that kernel, in the repository's folder."""
        if self.image is None:
            return list(argv)
        vng = shutil.which("vng", path=_path()) or "vng"
        # One processor: without KVM two of them wait for each other's locks, and everything takes twice as long.
        options = ["--disable-kvm", "--memory", "2G", "--cpus", "1", "--user", "root", "--name", "meshray-vm"]
        return [vng, "--run", str(self.image), *options, "--", shlex.join(argv)]

    def start(self, argv: Sequence[str], *, stderr: IO[bytes] | int | None = None) -> subprocess.Popen[bytes]:
        """Run argv there, in a separate session. Its standard output is a pipe: QEMU truncates a file."""
        return subprocess.Popen(
            self.command(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=REPOSITORY,
            env={**os.environ, "PATH": _path()},
            start_new_session=True,
        )


def _path() -> str:
    """Return PATH with this environment's programs first (vng calls virtme-run by name)."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def has_wireguard_here() -> bool:
    """Return whether the running kernel can create a WireGuard device, tested in a temporary network namespace."""
    probe = ["unshare", "--net", "ip", "link", "add", "meshray-probe", "type", "wireguard"]
    return subprocess.run(probe, capture_output=True, check=False, timeout=30).returncode == 0


def find() -> Kernel:
    """Return the kernel to run on.

    Raises:
        MissingError: neither this machine's kernel nor one for QEMU is suitable.
    """
    if os.geteuid() != 0:
        raise MissingError("root")
    if has_wireguard_here():
        return Kernel(None)
    if platform.machine() != "x86_64":
        raise MissingError("WireGuard in this kernel (the one in QEMU is for x86_64)")
    if shutil.which("vng", path=_path()) is None:
        raise MissingError("WireGuard in this kernel, or virtme-ng (pip install virtme-ng)")
    packages = [package for program, package in PACKAGES.items() if shutil.which(program, path=_path()) is None]
    image = _newest_image(Path("/boot"))
    if image is None:
        packages.append("linux-image-amd64")
    if image is None or packages:
        raise MissingError(f"WireGuard in this kernel, or QEMU's parts (apt-get install {' '.join(packages)})")
    return Kernel(image)


def _newest_image(boot: Path) -> Path | None:
    """Return a kernel of Debian's plain flavour whose modules are installed."""
    images = [
        image
        for image in boot.glob("vmlinuz-*-amd64")
        if "cloud" not in image.name and Path("/lib/modules", image.name.removeprefix("vmlinuz-")).is_dir()
    ]
    return max(images, key=lambda image: image.stat().st_mtime, default=None)
