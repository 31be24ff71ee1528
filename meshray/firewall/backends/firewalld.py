"""firewalld: meshray puts the overlay's interface into its trusted zone.

>>> Firewalld(lambda argv, stdin: Answer(127, "", "")).advise_port("udp", 51888)[0]
'firewall-cmd --add-port=51888/udp'
"""

from __future__ import annotations

from meshray.firewall.backends.base import Manager
from meshray.firewall.host_programs import Answer, Run
from meshray.firewall.ruleset import Table

_TABLE = "firewalld"
#: The chain that firewalld creates when it drives iptables and not nftables.
_CHAIN = "INPUT_ZONES"
_ZONE = "trusted"


class Firewalld(Manager):
    """firewalld. Its trusted zone accepts everything; what members may not reach our own table drops."""

    def __init__(self, run: Run) -> None:
        self._run = run
        #: Whether the interface is in the trusted zone because meshray asked for it; None: not known yet.
        self._trusted: bool | None = None

    @property
    def accepts_all(self) -> bool:
        """See `Manager.accepts_all`."""
        return bool(self._trusted)

    def manages(self, table: Table) -> bool:
        """See `Manager.manages`."""
        return table.name == _TABLE or table.chain(_CHAIN) is not None

    def open(self, interface: str, *, dropped: bool) -> list[str]:
        """Put the interface into the trusted zone until firewalld's next reload, unless a user chose a zone.

        If firewalld does not answer (it ended and left its rules), a rule of ours lets the overlay pass, as in any
        table.
        """
        if dropped:
            if not self._zone_of(interface) and self._call(f"--zone={_ZONE}", f"--add-interface={interface}").ok:
                self._trusted = True
                return [f"firewalld: {interface} is in the trusted zone"]
        elif self._trusted is None:
            self._trusted = self._trusted_by_us(interface)
        return []

    def close(self, interface: str) -> list[str]:
        """Remove the interface from the trusted zone, unless a user's permanent configuration puts it there."""
        self._trusted = None
        out = (f"--zone={_ZONE}", f"--remove-interface={interface}")
        if self._trusted_by_us(interface) and self._call(*out).ok:
            return [f"firewalld: {interface} is out of the trusted zone"]
        return []

    def advise_port(self, protocol: str, port: int) -> list[str]:
        """See `Manager.advise_port`."""
        return [f"firewall-cmd {permanent}--add-port={port}/{protocol}" for permanent in ("", "--permanent ")]

    def advise_overlay(self, interface: str) -> list[str]:
        """See `Manager.advise_overlay`."""
        return [f"firewall-cmd --zone={_ZONE} --change-interface={interface}"]

    def _zone_of(self, interface: str) -> str:
        """Return firewalld's zone for this interface; empty if there is none, or firewalld does not answer."""
        answer = self._call(f"--get-zone-of-interface={interface}")
        return answer.out.strip() if answer.ok else ""

    def _trusted_by_us(self, interface: str) -> bool:
        """Return whether the interface is in the trusted zone only until firewalld's next reload."""
        query = ("--permanent", f"--zone={_ZONE}", f"--query-interface={interface}")
        return self._zone_of(interface) == _ZONE and not self._call(*query).ok

    def _call(self, *arguments: str) -> Answer:
        return self._run(["firewall-cmd", *arguments], "")
