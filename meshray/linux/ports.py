"""Whether a port is free on this machine, and if not, who has it.

>>> user_of(51888, "udp")
'wireguard-go (pid 4711)'
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from meshray.errors import MeshrayError

_KINDS = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
#: TCP_LISTEN and the state that the kernel shows for unconnected UDP sockets (include/net/tcp_states.h).
_OPEN_STATES = {"tcp": "0A", "udp": "07"}


def require_free(port: int, kinds: Iterable[str] = ("udp", "tcp")) -> None:
    """Raises MeshrayError ``port_in_use`` (naming who has it, if that can be told) or ``port_closed``."""
    for kind in kinds:
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - bound to be tried
            _try_bind(port, kind, family, host)


def free_udp_port(preferred: int) -> int:
    """The preferred port where it is free, else one that the kernel chooses."""
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
            if kind == "tcp":  # connections that are ending do not keep a server from starting
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            user = user_of(port, kind)
            raise MeshrayError(
                "port_in_use",
                f"{kind.upper()} port {port} is in use" + (f" by {user}" if user else ""),
                hint="choose another one with --port, or end the program that has it",
            ) from None
        if error.errno == errno.EACCES:
            raise MeshrayError(
                "port_closed", f"{kind.upper()} port {port} may be opened by root only", hint="--port 51888"
            ) from None
        if family == socket.AF_INET6:  # a machine without IPv6
            return
        raise


def user_of(port: int, kind: str) -> str:
    """Program and pid of whoever has the port; empty where that cannot be told (the kernel, another namespace)."""
    inodes = set(_inodes(port, kind))
    if not inodes:
        return ""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _holds(process, inodes):
            try:
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
            except OSError:  # it ended meanwhile
                continue
    return ""


def _inodes(port: int, kind: str) -> Iterator[str]:
    for table in (kind, kind + "6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        yield from parse_table(lines, port, _OPEN_STATES[kind])


def parse_table(lines: Iterable[str], port: int, state: str) -> Iterator[str]:
    """The socket inodes of /proc/net/{tcp,udp} lines (proc(5)) that have this local port and state."""
    for line in lines:
        fields = line.split()
        if len(fields) > 9 and fields[3] == state and int(fields[1].rpartition(":")[2], 16) == port:
            yield fields[9]


def _holds(process: Path, inodes: set[str]) -> bool:
    try:
        return any(str(fd.readlink())[8:-1] in inodes for fd in (process / "fd").iterdir())
    except OSError:
        return False
