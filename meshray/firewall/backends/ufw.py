"""ufw: it leaves room for rules of others in its tables, so our accepts are put there by iptables.

>>> Ufw().advise_port("udp", 51888)
['ufw allow 51888/udp']
"""

from __future__ import annotations

from meshray.firewall.backends.base import Manager
from meshray.firewall.ruleset import Table


class Ufw(Manager):
    """A user opens ports by ``ufw allow``."""

    def manages(self, table: Table) -> bool:
        """See `Manager.manages`."""
        return table.chain("ufw-user-input") is not None

    def advise_port(self, protocol: str, port: int) -> list[str]:
        """See `Manager.advise_port`."""
        return [f"ufw allow {port}/{protocol}"]
