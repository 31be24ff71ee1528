"""A host on which an ordinary user may run a node, and the user's traces on it."""

from __future__ import annotations

from tests.lab.host import USER, Host


def give_tun(host: Host) -> None:
    """Create a separate /dev/net/tun that everyone may open, like udev; its mode affects no other host."""
    host.shell("mount -t tmpfs tmpfs /dev/net && mknod -m 0666 /dev/net/tun c 10 200")


def traces(host: Host) -> str:
    """Return the user's processes, files, interfaces and mounts on a machine."""
    return host.shell(
        f"ps -u {USER} -o args=; find /home/{USER} /tmp -user {USER}; ip -o link; cat /proc/mounts; ss -Hltun",
        check=False,
    ).stdout
