"""This machine's TCP sockets, asked from the kernel by netlink (sock_diag(7)).

>>> [(found.port, found.address) for found in tcp_sockets(LISTEN)]
[(22, '0.0.0.0'), (22, '::')]

/proc/net/tcp has the same, but the kernel goes through its table of all connections to write it: 20 ms on a machine
with much memory, however few there are. Asked for those that listen alone it goes through theirs.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

#: The kernel's numbers for a socket's state (include/net/tcp_states.h).
ESTABLISHED, LISTEN = 1, 10

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_AND_DUMP = 0x301
_ERROR, _DONE = 2, 3
#: struct nlmsghdr: length, type, flags, sequence, pid.
_HEADER = struct.Struct("=IHHII")
#: struct inet_diag_req_v2 without its last fields: family, protocol, extensions, padding, states, ports.
_QUESTION = struct.Struct("=BBBxI")
#: struct inet_diag_msg: family, state, timer, retransmits; ports; addresses; interface, cookie; five numbers.
_ANSWER = struct.Struct("=BBBB2s2s16s16sI8s5I")
_REST_OF_SOCKET_ID = 16 + 16 + 4 + 8
_RECEIVE_BYTES = 65536
_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class TcpSocket:
    """One socket: its own end, its remote end's address, and the inode by which a process holds it."""

    port: int
    address: str
    remote: str
    inode: str


def tcp_sockets(state: int, remote_port: int = 0) -> list[TcpSocket]:
    """All of IPv4 and IPv6 in this state, connected to this remote port where it is given (0: to any)."""
    try:
        return _asked(state, remote_port)
    except OSError:  # a kernel without tcp_diag, or a sandbox
        tables = [_table(name) for name in ("tcp", "tcp6")]
        return [found for table in tables for found in parse_table(table, state, remote_port)]


def _asked(state: int, remote_port: int) -> list[TcpSocket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_TIMEOUT_S)
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            kernel.send(question(family, state, remote_port))
            done = False
            while not done:
                sockets, done = parse(kernel.recv(_RECEIVE_BYTES))
                found += sockets
        return found


def question(family: int, state: int, remote_port: int) -> bytes:
    """The message that asks for them. Pure."""
    ports = struct.pack("!HH", 0, remote_port)
    body = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 1 << state) + ports + bytes(_REST_OF_SOCKET_ID)
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 0, 0) + body


def parse(data: bytes) -> tuple[list[TcpSocket], bool]:
    """The sockets in a part of the answer, and whether it is the last part. Pure but for what it raises.

    Raises:
        OSError: the kernel refused.
    """
    sockets: list[TcpSocket] = []
    for kind, body in _messages(data):
        if kind == _DONE:
            return sockets, True
        if kind == _ERROR:
            number = -struct.unpack_from("=i", body)[0]
            raise OSError(number, "sock_diag was refused")
        sockets.append(_socket(body))
    return sockets, False


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, start)
        yield kind, data[start + _HEADER.size : start + length]
        start += max(length + 3 & ~3, _HEADER.size)


def parse_table(table: str, state: int, remote_port: int = 0) -> Iterator[TcpSocket]:
    """The same out of /proc/net/tcp or tcp6 (proc(5)). Pure."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and int(fields[3], 16) == state:
            (local, port), (remote, other) = (fields[place].split(":") for place in (1, 2))
            if remote_port in (0, int(other, 16)):
                yield TcpSocket(int(port, 16), _of_table(local), _of_table(remote), fields[9])


def _of_table(text: str) -> str:
    """Words of 32 bits, in this machine's byte order."""
    raw = b"".join(struct.pack("=I", int(text[start : start + 8], 16)) for start in range(0, len(text), 8))
    return _address(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _table(name: str) -> str:
    try:
        return Path("/proc/net", name).read_text()
    except OSError:
        return ""


def _socket(body: bytes) -> TcpSocket:
    family, _, _, _, port, _, local, remote, *_, inode = _ANSWER.unpack_from(body)
    return TcpSocket(int.from_bytes(port, "big"), _address(family, local), _address(family, remote), str(inode))


def _address(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return str(IPv4Address(raw[:4]))
    address = IPv6Address(raw)
    return str(address.ipv4_mapped or address)
