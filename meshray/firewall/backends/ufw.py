"""ufw: it leaves room for other rules in its tables, so iptables adds our accepts there.

>>> Ufw().advise_port("udp", 51888)
['ufw allow 51888/udp']
"""

from __future__ import annotations

from meshray.firewall.backends.base import Manager
from meshray.firewall.ruleset import Table


class Ufw(Manager):
    """ufw. A user opens ports with ``ufw allow``."""

    def manages(self, table: Table) -> bool:
        """See `Manager.manages`."""
        return table.chain("ufw-user-input") is not None

    def advise_port(self, protocol: str, port: int) -> list[str]:
        """See `Manager.advise_port`."""
        return [f"ufw allow {port}/{protocol}"]
