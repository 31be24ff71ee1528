"""A host on which an ordinary user may have a node, and what of hers is there."""

from __future__ import annotations

from tests.lab.host import USER, Host


def give_tun(host: Host) -> None:
    """A /dev/net/tun of its own that everybody may open, as udev makes it; its mode is nobody else's matter."""
    host.shell("mount -t tmpfs tmpfs /dev/net && mknod -m 0666 /dev/net/tun c 10 200")


def traces(host: Host) -> str:
    """What of hers a machine has: processes, files, interfaces, mounts."""
    return host.shell(
        f"ps -u {USER} -o args=; find /home/{USER} /tmp -user {USER}; ip -o link; cat /proc/mounts; ss -Hltun",
        check=False,
    ).stdout
