"""Check whether a UDP port is reachable from outside: one side knocks, the other listens before WireGuard uses the
port.

>>> with Listener(51888) as listener:
...     ask_the_coordinator_to_knock(endpoint, listener.word)
...     listener.heard(1.0)
True

WireGuard itself cannot check this, because its own outgoing packet would open the firewall.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType

#: More than one, because a packet may be lost.
_KNOCKS = 3
_PAUSE_S = 0.2
KNOCKS_S = (_KNOCKS - 1) * _PAUSE_S
_MAX_PACKET = 2048


async def knock(ip: IPv4Address | IPv6Address, port: int, word: str) -> None:
    """Send the word to the address a few times within `KNOCKS_S`, from a port unknown to the firewall there.

    Raises:
        OSError: no route to the address.
    """
    with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for number in range(_KNOCKS):
            if number:
                await asyncio.sleep(_PAUSE_S)
            sender.sendto(_packet(word), (str(ip), port))


class Listener:
    """Listens on the port until the end of its `with` block.

    Attributes:
        word: the word that the knock must contain.

    Raises:
        OSError: the port is in use.
    """

    def __init__(self, port: int) -> None:
        self.word = secrets.token_hex(16)
        self._socket = _open(port)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def heard(self, timeout_s: float) -> bool:
        """Return whether the word has arrived, or arrives within this time."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left_s)
            try:
                packet = self._socket.recv(_MAX_PACKET)
            except OSError:  # timeout
                return False
            if packet == _packet(self.word):
                return True
        return False


def _packet(word: str) -> bytes:
    return f"meshray knock {word}".encode()


def _open(port: int) -> socket.socket:
    try:
        both = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError:  # a machine without IPv6
        both = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if both.family == socket.AF_INET6:
            both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("", port))
    except BaseException:
        both.close()
        raise
    return both
