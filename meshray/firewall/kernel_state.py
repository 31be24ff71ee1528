"""What the kernel reports and accepts under /proc: tables of iptables-legacy, IPv6, forwarding, the default route."""

from __future__ import annotations

from pathlib import Path


class KernelState:
    """The settings and tables of the kernel under /proc."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root

    def legacy_table_in_use(self, table: str = "filter") -> bool:
        """Return whether iptables-legacy has this table; running that program would create it."""
        try:
            return table in (self._root / "net/ip_tables_names").read_text().split()
        except OSError:
            return False

    def has_ipv6(self) -> bool:
        """Return whether this host supports IPv6."""
        return (self._root / "net/if_inet6").exists()

    def forwarding(self, interface: str) -> str | None:
        """Return ``1`` if IPv4 packets that come in on this interface may be forwarded, ``0`` if not, None without the
        interface."""
        try:
            return (self._root / "sys/net/ipv4/conf" / interface / "forwarding").read_text().strip()
        except OSError:
            return None

    def set_forwarding(self, interface: str, value: str) -> None:
        """Set the forwarding switch. Raises OSError where /proc/sys is read-only (containers) or permissions are
        missing."""
        (self._root / "sys/net/ipv4/conf" / interface / "forwarding").write_text(value)

    def uplink(self) -> str:
        """Return the interface of the default route; empty if there is none."""
        try:
            lines = (self._root / "net/route").read_text().splitlines()[1:]
        except OSError:
            return ""
        return next((line.split()[0] for line in lines if line.split()[1:2] == ["00000000"]), "")
