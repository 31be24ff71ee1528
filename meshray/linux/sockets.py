"""This machine's sockets: those of TCP are asked from the kernel by netlink (sock_diag(7)).

>>> [(found.port, found.address) for found in tcp_sockets(LISTEN)]
[(22, '0.0.0.0'), (22, '::')]

/proc/net/tcp has the same, but the kernel goes through its table of all connections to write it: 20 ms on a machine
with much memory, however few there are. Asked for those that listen alone it goes through theirs.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from meshray.linux import procfs
from meshray.linux.netlink import ACK, DONE, DUMP, ERROR, attributes, messages, request

#: The kernel's numbers for a socket's state (include/net/tcp_states.h).
ESTABLISHED, LISTEN = 1, 10
#: What the kernel shows of UDP sockets that are bound and not connected (TCP_CLOSE).
_UNCONNECTED = 7
#: The states in which sent data may wait to be acknowledged: ESTABLISHED, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING.
_SENDING = 1 << 1 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 11
#: The timer that sends data again, in struct inet_diag_msg.
_RETRANSMIT_TIMER = 1

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
#: Beside an established connection: one that is being made, and those of which one end was closed.
_OPEN_STATES = (ESTABLISHED, 2, 4, 8)
_ALL_STATES = 0xFFFFFFFF
#: struct inet_diag_sockid in struct inet_diag_msg: ports, addresses, interface, cookie.
_ID_AT, _ID_BYTES, _REMOTE_AT = 4, 48, 24
#: struct inet_diag_req_v2 without its last fields: family, protocol, extensions, padding, states, ports.
_QUESTION = struct.Struct("=BBBxI")
#: struct inet_diag_msg: family, state, timer, retransmits; ports; addresses; interface, cookie; five numbers.
_ANSWER = struct.Struct("=BBBB2s2s16s16sI8s5I")
#: INET_DIAG_SKV6ONLY, one byte; told of listening IPv6 sockets (Linux 4.3).
_ONLY_IPV6 = 11
#: Where the timer is in it, and behind it the retransmits.
_TIMER = 2
_REST_OF_SOCKET_ID = 16 + 16 + 4 + 8
_RECEIVE_BYTES = 65536
_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Socket:
    """One socket: its own end, its remote end's address, and the inode by which a process holds it.

    Attributes:
        only_ipv6: listening on "::", it takes no IPv4; False where the kernel does not tell.
    """

    port: int
    address: str
    remote: str
    inode: str
    only_ipv6: bool = False


def tcp_sockets(state: int, remote_port: int = 0) -> list[Socket]:
    """All of IPv4 and IPv6 in this state, connected to this remote port where it is given (0: to any)."""
    try:
        return _asked(state, remote_port)
    except OSError:  # a kernel without tcp_diag, or a sandbox
        return list(_listed("tcp", state, remote_port))


def holder_of(port: int, kind: str) -> str:
    """Return program and pid of whoever listens on this port; empty where that cannot be told (the kernel, another
    namespace, another user's process).

    Args:
        kind: ``tcp`` or ``udp``.
    """
    open_ones = tcp_sockets(LISTEN) if kind == "tcp" else _listed("udp", _UNCONNECTED)
    return procfs.holder({found.inode for found in open_ones if found.port == port})


def _asked(state: int, remote_port: int) -> list[Socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_TIMEOUT_S)
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            kernel.send(question(family, 1 << state, remote_port))
            done = False
            while not done:
                sockets, done = parse(kernel.recv(_RECEIVE_BYTES))
                found += sockets
        return found


def close_connections(to: IPv4Address) -> int:
    """Close this machine's TCP connections to an address as if the other end had (SOCK_DESTROY of sock_diag(7)).

    Returns:
        How many were closed; 0 as well where the kernel cannot do it (before Linux 4.9, or built without it): a program
        then waits for its own timeouts.

    Raises:
        OSError: the kernel cannot be asked.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_TIMEOUT_S)
        kinds = [(family, state) for family in (socket.AF_INET, socket.AF_INET6) for state in _OPEN_STATES]
        open_ones = [found for kind in kinds for found in _dumped(kernel, *kind) if _goes_to(found, to)]
        return sum(_destroyed(kernel, found) for found in open_ones)


def _dumped(kernel: socket.socket, family: int, state: int) -> list[bytes]:
    kernel.send(question(family, 1 << state))
    bodies: list[bytes] = []
    while True:
        for message in messages(kernel.recv(_RECEIVE_BYTES)):
            if message.kind in (DONE, ERROR):
                return bodies
            bodies.append(message.body)


def _goes_to(body: bytes, to: IPv4Address) -> bool:
    # gRPC's sockets are of IPv6, and hold IPv4 addresses as ::ffff:10.99.0.7.
    return _address(body[0], body[_REMOTE_AT : _REMOTE_AT + 16]) == str(to)


def _destroyed(kernel: socket.socket, body: bytes) -> bool:
    """Whether the kernel closed the socket that this entry of a dump describes."""
    socket_id = body[_ID_AT : _ID_AT + _ID_BYTES]
    question_of_one = _QUESTION.pack(body[0], socket.IPPROTO_TCP, 0, _ALL_STATES) + socket_id
    kernel.send(request(_SOCK_DESTROY, ACK, question_of_one))
    answer = next(messages(kernel.recv(_RECEIVE_BYTES)))
    return answer.kind == ERROR and not answer.refused


def unacknowledged(times: int) -> set[str]:
    """The remote addresses of the connections whose data was sent again so many times in a row without an answer.

    Raises:
        OSError: a kernel without tcp_diag, or a sandbox.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_TIMEOUT_S)
        found = set()
        # Connections to IPv4 addresses may be held by IPv6 sockets.
        for family in (socket.AF_INET, socket.AF_INET6):
            kernel.send(question(family, _SENDING))
            done = False
            while not done:
                stalled, done = parse(kernel.recv(_RECEIVE_BYTES), times)
                found |= {one.remote for one in stalled}
        return found


def timeouts(netstat: str) -> int:
    """How often TCP has sent data again because no answer came, out of /proc/net/netstat; 0 where that is not told."""
    names, numbers = ([line.split() for line in netstat.splitlines() if line.startswith("TcpExt:")] + [[], []])[:2]
    return int(numbers[names.index("TCPTimeouts")]) if "TCPTimeouts" in names else 0


def question(family: int, states: int, remote_port: int = 0) -> bytes:
    """The message that asks for the sockets in these states (a bit for each). Pure."""
    ports = struct.pack("!HH", 0, remote_port)
    body = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, states) + ports + bytes(_REST_OF_SOCKET_ID)
    return request(_SOCK_DIAG_BY_FAMILY, DUMP, body)


def parse(data: bytes, retransmits: int = 0) -> tuple[list[Socket], bool]:
    """The sockets in a part of the answer, and whether it is the last part. Pure but for what it raises.

    Args:
        retransmits: only those whose data was sent again so often; 0: all.

    Raises:
        OSError: the kernel refused.
    """
    sockets: list[Socket] = []
    for message in messages(data):
        body = message.body
        if message.kind == DONE:
            return sockets, True
        if message.kind == ERROR:
            raise OSError(message.refused, "sock_diag was refused")
        if not retransmits or (body[_TIMER] == _RETRANSMIT_TIMER and body[_TIMER + 1] >= retransmits):
            sockets.append(_socket(body))
    return sockets, False


def parse_table(table: str, state: int, remote_port: int = 0) -> Iterator[Socket]:
    """The sockets of /proc/net/tcp, tcp6, udp or udp6 (proc(5)) in this state, see `tcp_sockets`. Pure."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and int(fields[3], 16) == state:
            (local, port), (remote, other) = (fields[place].split(":") for place in (1, 2))
            if remote_port in (0, int(other, 16)):
                yield Socket(int(port, 16), _of_table(local), _of_table(remote), fields[9])


def _of_table(text: str) -> str:
    """Words of 32 bits, in this machine's byte order."""
    raw = b"".join(struct.pack("=I", int(text[start : start + 8], 16)) for start in range(0, len(text), 8))
    return _address(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _listed(kind: str, state: int, remote_port: int = 0) -> Iterator[Socket]:
    for table in (kind, f"{kind}6"):
        with contextlib.suppress(OSError):  # a machine without IPv6
            # Of this thread: it may be in another network namespace than the process.
            yield from parse_table(Path("/proc/thread-self/net", table).read_text(), state, remote_port)


def _socket(body: bytes) -> Socket:
    family, _, _, _, port, _, local, remote, *_, inode = _ANSWER.unpack_from(body)
    only_ipv6 = attributes(body[_ANSWER.size :]).get(_ONLY_IPV6, b"\0")[:1] == b"\1"
    return Socket(int.from_bytes(port, "big"), _address(family, local), _address(family, remote), str(inode), only_ipv6)


def _address(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return str(IPv4Address(raw[:4]))
    address = IPv6Address(raw)
    return str(address.ipv4_mapped or address)
