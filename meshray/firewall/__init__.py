"""The guard: a host's firewall lets the overlay in, and the overlay leads nowhere else.

from meshray.firewall import Firewall, Opening
Firewall(Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=False)).apply()
"""

from meshray.firewall.advice import open_port_commands
from meshray.firewall.firewall import Firewall
from meshray.firewall.opening import Opening

__all__ = ["Firewall", "Opening", "open_port_commands"]
