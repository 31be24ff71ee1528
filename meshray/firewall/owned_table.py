"""An nftables table that only this process can change: it survives ``nft flush ruleset`` by other programs.

    Firewall ──► table inet meshray         replaceable by any program, restored; outlives the agent
             └─► table inet meshray_owned   the same rules, held by a netlink socket; ends with the agent

Linux supports it from version 5.12 on. Elsewhere there is no such table, and flushed rules are restored.
"""

from __future__ import annotations

import logging
import os
import socket

from meshray.firewall import nfnetlink
from meshray.firewall.backends.nft import OWNED_TABLE
from meshray.firewall.closing import Closed
from meshray.firewall.opening import Opening
from meshray.firewall.own_rules import own_rules

log = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
_TIMEOUT_S = 5.0
_BUFFER_BYTES = 65536


class OwnedTable:
    """The table that this process owns. Blocking."""

    def __init__(self) -> None:
        self._kernel: socket.socket | None = None
        self._content: tuple[Opening, Closed] | None = None

    @property
    def exists(self) -> bool:
        """Whether the table exists."""
        return self._content is not None

    def put(self, opening: Opening, closed: Closed) -> None:
        """Create or replace the table with these rules, if the kernel supports it."""
        if self._content == (opening, closed):
            return
        try:
            self._send(opening, closed)
        except OSError as error:
            # The owned table is missing or has other ports: it is removed, and only the plain table remains.
            log.debug("nft: no table inet %s: %s", OWNED_TABLE, error)
            self.end()
        else:
            self._content = opening, closed

    def end(self) -> None:
        """Remove the table."""
        self._content = None
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def _send(self, opening: Opening, closed: Closed) -> None:
        if self._kernel is None:
            self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            self._kernel.bind((0, 0))
            self._kernel.settimeout(_TIMEOUT_S)
        replaces = self.exists
        batch, last = nfnetlink.owned_table(OWNED_TABLE, own_rules(opening, closed), replaces=replaces)
        self._kernel.send(batch)
        done = False
        while not done:
            done, refused = nfnetlink.answered(self._kernel.recv(_BUFFER_BYTES), last)
            if refused:
                raise OSError(refused, os.strerror(refused))
