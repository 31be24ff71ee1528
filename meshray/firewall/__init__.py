"""The host's firewall: it accepts the overlay's packets, and packets leave the overlay nowhere else.

from meshray.firewall import Firewall, Opening

Firewall(Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=False)).apply()
"""

from meshray.firewall.advice import open_port_commands
from meshray.firewall.closing import Closed, Listening, decide
from meshray.firewall.firewall import Firewall
from meshray.firewall.guard import GuardState, guard_state
from meshray.firewall.opening import Opening

__all__ = ["Closed", "Firewall", "GuardState", "Listening", "Opening", "decide", "guard_state", "open_port_commands"]
