"""Runs WireGuard's engine inside a node's namespaces, with the right to create an interface and no other.

    python -I -m meshray.runtime.rootless.enter_engine PID SOCKETS -- wireguard-go -f meshray0

PID is as in `meshray.runtime.rootless.enter`. The stock engine creates its socket in /run/wireguard, which belongs to
root. In a mount namespace of its own, that path is SOCKETS, a folder of the user. The module uses only the standard
library.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from meshray.runtime.rootless import syscalls
from meshray.runtime.rootless.enter import enter, execute

#: The engine uses /var/run, which is a link to it.
_RUN = Path("/run")


def main(arguments: list[str]) -> int:
    """Become the engine; return the exit code if that fails."""
    pid, sockets, command = int(arguments[0]), Path(arguments[1]), arguments[3:]
    try:
        enter(pid)
        _show(sockets)
        os.chdir("/")
        syscalls.drop_all(but=syscalls.NET_ADMIN)
    except OSError as error:
        sys.stderr.write(f"error: the namespaces of this node: {error.strerror}: {error.filename or ''}\n")
        return 126
    return execute(command)


def _show(sockets: Path) -> None:
    """Mount the folder on /run/wireguard, for this process only."""
    syscalls.unshare(syscalls.NEWNS)
    # Held open, because it may be below /run itself.
    folder = os.open(sockets, os.O_PATH | os.O_DIRECTORY)
    syscalls.mount("tmpfs", str(_RUN), "tmpfs", syscalls.NOSUID | syscalls.NODEV, "mode=0755")
    shown = _RUN / "wireguard"
    shown.mkdir()
    syscalls.mount(f"/proc/self/fd/{folder}", str(shown), "", syscalls.BIND)
    os.close(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
