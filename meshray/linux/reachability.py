"""Check whether a UDP port is reachable from outside: the coordinator sends probes to it while this node listens,
before WireGuard uses the port.

>>> with Listener(51888) as listener:
...     request_probes_from_the_coordinator(endpoint, listener.token)
...     listener.wait(1.0)
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

#: The number of probes: more than one, because a packet may be lost.
_PROBES = 3
_PAUSE_S = 0.2
PROBES_S = (_PROBES - 1) * _PAUSE_S
_MAX_PACKET = 2048


async def send_probes(ip: IPv4Address | IPv6Address, port: int, token: str) -> None:
    """Send the token to the address a few times within `PROBES_S`, from a port unknown to the firewall there.

    Raises:
        OSError: no route to the address.
    """
    with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for number in range(_PROBES):
            if number:
                await asyncio.sleep(_PAUSE_S)
            sender.sendto(_packet(token), (str(ip), port))


class Listener:
    """Listens on the port until the end of its `with` block.

    Attributes:
        token: the random text that a probe must contain.

    Raises:
        OSError: the port is in use.
    """

    def __init__(self, port: int) -> None:
        self.token = secrets.token_hex(16)
        self._socket = _open(port)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def wait(self, timeout_s: float) -> bool:
        """Return whether a probe with the token has arrived, or arrives within this time."""
        deadline = time.monotonic() + timeout_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            self._socket.settimeout(remaining_s)
            try:
                packet = self._socket.recv(_MAX_PACKET)
            except OSError:  # timeout
                return False
            if packet == _packet(self.token):
                return True
        return False


def _packet(token: str) -> bytes:
    return f"meshray knock {token}".encode()


def _open(port: int) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError:  # a machine without IPv6
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("", port))
    except BaseException:
        sock.close()
        raise
    return sock
