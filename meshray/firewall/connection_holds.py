"""Hold the connections to nodes that do not answer, so that they resume at once when the nodes answer again.

    TCP, not acknowledged ──► pauses of 0.2, 0.4 … 120 s: after a gap of two minutes it waits two minutes more
    the same, refused here with "host unreachable" ──► pauses that do not grow (RFC 6069): it goes on within a second

For an existing connection the kernel treats such an answer as a hint and never breaks the connection (RFC 1122,
4.2.3.9). It would break new connections, so the rules leave those alone. The rules are in a table of meshray's own,
which is replaced as a whole; without nft nothing is held, and connections resume when their own pauses end.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address

from meshray.firewall.backends.nft import OWN_TABLE
from meshray.firewall.host_programs import Run, run_program


def hold_script(interface: str, silent: Collection[IPv4Address]) -> str:
    """Return the script for ``nft -f -`` that holds connections to these addresses and to no others. Pure."""
    begin = f"add table ip {OWN_TABLE}\ndelete table ip {OWN_TABLE}\n"
    if not silent:
        return begin
    addresses = ", ".join(map(str, sorted(silent)))
    return (
        f"{begin}table ip {OWN_TABLE} {{\n  chain silent {{\n"
        "    type filter hook output priority 0; policy accept;\n"
        f'    oifname "{interface}" ip daddr {{ {addresses} }} tcp flags & syn == 0 '
        f'reject with icmp type host-unreachable comment "meshray {interface}: silent nodes"\n  }}\n}}\n'
    )


class ConnectionHolds:
    """The held connections of this node. Blocking: call its methods in a thread.

    Args:
        run: runs a program; tests pass a fake host.
    """

    def __init__(self, interface: str, *, run: Run = run_program) -> None:
        self._interface = interface
        self._run = run
        #: None: an earlier agent may have left some.
        self._held: frozenset[IPv4Address] | None = None

    def hold(self, silent: Collection[IPv4Address]) -> str:
        """Hold the connections to exactly these addresses; return the reason why that is impossible, or ``""``."""
        wanted = frozenset(silent)
        if wanted == self._held:
            return ""
        answer = self._run(["nft", "-f", "-"], hold_script(self._interface, wanted))
        # Without nft nothing was ever held.
        if answer.ok or (answer.missing and not wanted):
            self._held = wanted
            return ""
        return answer.cause
