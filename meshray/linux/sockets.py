"""This machine's sockets. TCP sockets are read from the kernel by netlink (sock_diag(7)).

>>> [(found.port, found.address) for found in tcp_sockets(LISTEN)]
[(22, '0.0.0.0'), (22, '::')]

/proc/net/tcp has the same data, but the kernel scans its hash table of all connections for it: 20 ms on a machine with
much memory, even with few connections. A request for listening sockets scans only their table.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from meshray.linux import procfs
from meshray.linux.netlink import NetlinkSocket, attributes

#: The kernel's numbers for a socket's state (include/net/tcp_states.h).
ESTABLISHED, LISTEN = 1, 10
#: The state of UDP sockets that are bound and not connected (TCP_CLOSE).
_UNCONNECTED = 7
#: The states in which sent data may be unacknowledged: ESTABLISHED, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING.
_SENDING = 1 << 1 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 11
#: The retransmission timer in struct inet_diag_msg.
_RETRANSMIT_TIMER = 1

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
#: Established connections, those in SYN_SENT, and those with one closed end.
_OPEN_STATES = 1 << ESTABLISHED | 1 << 2 | 1 << 4 | 1 << 8
_ALL_STATES = 0xFFFFFFFF
#: struct inet_diag_sockid in struct inet_diag_msg: ports, addresses, interface, cookie.
_ID_AT, _ID_BYTES = 4, 48
#: struct inet_diag_req_v2 without its last fields: family, protocol, extensions, padding, states, ports.
_REQUEST = struct.Struct("=BBBxI")
#: struct inet_diag_msg: family, state, timer, retransmits; ports; addresses; interface, cookie; five numbers.
_REPLY = struct.Struct("=BBBB2s2s16s16sI8s5I")
#: INET_DIAG_SKV6ONLY, one byte, for listening IPv6 sockets (Linux 4.3).
_ONLY_IPV6 = 11
#: The offset of the timer, which the number of retransmits follows.
_TIMER = 2
_REST_OF_SOCKET_ID = 16 + 16 + 4 + 8
_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Socket:
    """One socket: its local end, its remote address, and its inode.

    Attributes:
        only_ipv6: whether a socket on "::" refuses IPv4; False if unknown.
    """

    port: int
    address: str
    remote: str
    inode: str
    only_ipv6: bool = False


def tcp_sockets(state: int, remote_port: int = 0) -> list[Socket]:
    """Return all IPv4 and IPv6 sockets in this state, with this remote port (0 for any)."""
    try:
        return _query(state, remote_port)
    except OSError:  # a kernel without tcp_diag, or a sandbox
        return list(_listed("tcp", state, remote_port))


def holder_of(port: int, kind: str) -> str:
    """Return program and pid of the process that listens on this port; empty if it cannot be found (the kernel, another
    namespace, another user's process).

    Args:
        kind: ``tcp`` or ``udp``.
    """
    entries = tcp_sockets(LISTEN) if kind == "tcp" else _listed("udp", _UNCONNECTED)
    return procfs.holder({found.inode for found in entries if found.port == port})


def _query(state: int, remote_port: int) -> list[Socket]:
    with _diagnosis() as kernel:
        return [parse(body) for body in _dump(kernel, 1 << state, remote_port)]


def _diagnosis() -> NetlinkSocket:
    return NetlinkSocket(_NETLINK_SOCK_DIAG, _TIMEOUT_S)


def _dump(kernel: NetlinkSocket, states: int, remote_port: int = 0) -> Iterator[bytes]:
    """Yield the kernel's entries of the TCP sockets in these states (one bit each).

    IPv6 sockets are always included, because they may have connections to IPv4 addresses, like those of gRPC.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        yield from kernel.dump(_SOCK_DIAG_BY_FAMILY, request_body(family, states, remote_port))


def close_connections(to: IPv4Address) -> int:
    """Close this machine's TCP connections to an address as if the peer had (SOCK_DESTROY of sock_diag(7)).

    Returns:
        The number of closed connections; also 0 if the kernel does not support it (before Linux 4.9, or built without
        it). Programs then wait for their own timeouts.

    Raises:
        OSError: the kernel does not answer.
    """
    with _diagnosis() as kernel:
        entries: list[bytes] = []
        with contextlib.suppress(FileNotFoundError):  # a kernel without tcp_diag
            entries += (entry for entry in _dump(kernel, _OPEN_STATES) if parse(entry).remote == str(to))
        return sum(_destroy(kernel, entry) for entry in entries)


def _destroy(kernel: NetlinkSocket, entry: bytes) -> bool:
    """Close the socket of this entry of a dump, and return whether the kernel did."""
    socket_id = entry[_ID_AT : _ID_AT + _ID_BYTES]
    try:
        kernel.change(_SOCK_DESTROY, _REQUEST.pack(entry[0], socket.IPPROTO_TCP, 0, _ALL_STATES) + socket_id)
    except TimeoutError:
        raise
    except OSError:
        return False
    return True


def unacknowledged(times: int) -> set[str]:
    """Return the remote addresses of connections whose data was retransmitted this many times without an answer.

    Raises:
        OSError: a kernel without tcp_diag, or a sandbox.
    """
    with _diagnosis() as kernel:
        return {parse(entry).remote for entry in _dump(kernel, _SENDING) if is_stalled(entry, times)}


def timeouts(netstat: str) -> int:
    """Return the number of TCP retransmission timeouts in /proc/net/netstat; 0 if it is missing."""
    return _tcp_counters(netstat).get("TCPTimeouts", 0)


def lost_segments(netstat: str) -> int:
    """Return the number of TCP segments in /proc/net/netstat that were lost on the path; 0 if it is missing.

    The sender counts them when it sends them again, the receiver when a later one arrives first.
    """
    counters = _tcp_counters(netstat)
    return sum(counters.get(name, 0) for name in ("TCPFastRetrans", "TCPSlowStartRetrans", "TCPOFOQueue"))


def _tcp_counters(netstat: str) -> Mapping[str, int]:
    names, numbers = ([line.split()[1:] for line in netstat.splitlines() if line.startswith("TcpExt:")] + [[], []])[:2]
    return dict(zip(names, map(int, numbers), strict=False))


def request_body(family: int, states: int, remote_port: int = 0) -> bytes:
    """Return the body of a request for the sockets in these states (one bit each). Pure."""
    ports = struct.pack("!HH", 0, remote_port)
    return _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + ports + bytes(_REST_OF_SOCKET_ID)


def is_stalled(entry: bytes, times: int) -> bool:
    """Return whether the connection of this entry has retransmitted its data this many times. Pure."""
    return entry[_TIMER] == _RETRANSMIT_TIMER and entry[_TIMER + 1] >= times


def parse(entry: bytes) -> Socket:
    """Return the socket of an entry of the kernel's answer. Pure."""
    family, _, _, _, port, _, local, remote, *_, inode = _REPLY.unpack_from(entry)
    only_ipv6 = attributes(entry[_REPLY.size :]).get(_ONLY_IPV6, b"\0")[:1] == b"\1"
    return Socket(int.from_bytes(port, "big"), _address(family, local), _address(family, remote), str(inode), only_ipv6)


def parse_table(table: str, state: int, remote_port: int = 0) -> Iterator[Socket]:
    """Yield the sockets of /proc/net/tcp, tcp6, udp or udp6 (proc(5)) in this state; see `tcp_sockets`. Pure."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and int(fields[3], 16) == state:
            (local, port), (remote, other) = (fields[index].split(":") for index in (1, 2))
            if remote_port in (0, int(other, 16)):
                yield Socket(int(port, 16), _of_table(local), _of_table(remote), fields[9])


def _of_table(text: str) -> str:
    """Parse an address that is written as 32-bit words in this machine's byte order."""
    raw = b"".join(struct.pack("=I", int(text[start : start + 8], 16)) for start in range(0, len(text), 8))
    return _address(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _listed(kind: str, state: int, remote_port: int = 0) -> Iterator[Socket]:
    for table in (kind, f"{kind}6"):
        with contextlib.suppress(OSError):  # a machine without IPv6
            # The table of this thread, which may be in another network namespace than the process.
            yield from parse_table(Path("/proc/thread-self/net", table).read_text(), state, remote_port)


def _address(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return str(IPv4Address(raw[:4]))
    address = IPv6Address(raw)
    return str(address.ipv4_mapped or address)
