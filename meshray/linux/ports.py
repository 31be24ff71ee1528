"""Check whether a port is free on this machine, and find the program that uses it.

>>> require_free(51888, ("udp",))
MeshrayError: UDP port 51888 is in use by wireguard-go (pid 4711)
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from meshray.errors import MeshrayError
from meshray.linux.sockets import holder_of

_KINDS = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}


def require_free(port: int, kinds: Iterable[str] = ("udp", "tcp")) -> None:
    """Raise MeshrayError ``port_in_use``, with the program if it can be found, or ``port_closed``."""
    for kind in kinds:
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - bound to be tried
            _try_bind(port, kind, family, host)


def free_udp_port(preferred: int) -> int:
    """Return the preferred port if it is free, or one that the kernel chooses."""
    try:
        require_free(preferred, ("udp",))
    except MeshrayError:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])
    return preferred


def _try_bind(port: int, kind: str, family: socket.AddressFamily, host: str) -> None:
    try:
        with socket.socket(family, _KINDS[kind]) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == "tcp":  # closing connections do not prevent a server from starting
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            holder = holder_of(port, kind)
            raise MeshrayError(
                "port_in_use",
                f"{kind.upper()} port {port} is in use" + (f" by {holder}" if holder else ""),
                hint="choose another one with --port, or stop the program that uses it",
            ) from None
        if error.errno == errno.EACCES:
            raise MeshrayError(
                "port_closed", f"{kind.upper()} port {port} may be opened by root only", hint="--port 51888"
            ) from None
        if family == socket.AF_INET6:  # a machine without IPv6
            return
        raise
