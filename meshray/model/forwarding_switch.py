"""How a hub reports that it cannot forward between nodes, and the command that fixes it."""

from __future__ import annotations

#: The beginning of the message that the switch cannot be set.
SWITCH = "forwarding on "


def forwarding_fix(interface: str, value: str) -> str:
    """Return the command that sets the interface's forwarding switch, for a container whose /proc/sys is read-only."""
    switch = f"net.ipv4.conf.{interface}.forwarding={value}"
    return (
        f"mount -o remount,bind,rw /proc/sys && sysctl -w {switch} "
        "(in a container: start it again with --sysctl net.ipv4.ip_forward=1)"
    )
