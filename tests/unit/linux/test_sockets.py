"""The kernel's answers about sockets as bytes and as text mean the same."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.linux.sockets import (
    ESTABLISHED,
    LISTEN,
    Socket,
    close_connections,
    holder_of,
    is_stalled,
    lost_segments,
    parse,
    parse_table,
    request_body,
    timeouts,
    unacknowledged,
)

#: Addresses are words in this machine's byte order: see `kernels`.
TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: {any4}:1F40 {any4}:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1508 1 0000 100 0 0 10 0
   1: {node}:D431 {head}:18EB 01 00000000:00000000 00:00000000 00000000     0        0 1600 1 0000 20 4 30 10 -1
   2: {node}:D432 {head}:0050 01 00000000:00000000 00:00000000 00000000     0        0 1601 1 0000 20 4 30 10 -1
"""


def kernels(address: str) -> str:
    """Return an address as /proc/net/tcp contains it."""
    return f"{struct.unpack('=I', socket.inet_aton(address))[0]:08X}"


def listening(family: int, port: int, address: bytes, inode: int) -> bytes:
    ends = struct.pack("!HH", port, 0) + address.ljust(16, b"\0") + bytes(16)
    return struct.pack("=BBBB", family, LISTEN, 0, 0) + ends + bytes(12) + struct.pack("=5I", 0, 0, 0, 0, inode)


def test_answers_of_the_kernel() -> None:
    mapped = bytes(10) + b"\xff\xff" + bytes([10, 99, 0, 1])
    entries = (
        listening(socket.AF_INET, 8000, bytes(4), 1508),
        listening(socket.AF_INET6, 10001, mapped, 1509),
        listening(socket.AF_INET6, 22, bytes(16), 1510),
    )
    found = [parse(entry) for entry in entries]
    assert [(each.port, each.address, each.inode) for each in found] == [
        (8000, "0.0.0.0", "1508"),
        (10001, "10.99.0.1", "1509"),
        (22, "::", "1510"),
    ]


def connection(timer: int, retransmits: int, remote: str) -> bytes:
    ends = struct.pack("!HH", 40000, 6379) + socket.inet_aton("10.99.0.1").ljust(16, b"\0")
    ends += socket.inet_aton(remote).ljust(16, b"\0")
    head = struct.pack("=BBBB", socket.AF_INET, ESTABLISHED, timer, retransmits)
    return head + ends + bytes(12) + struct.pack("=5I", 0, 0, 1420, 0, 7)


def test_connections_with_fruitless_retransmissions_are_found() -> None:
    entries = (
        connection(1, 2, "10.99.0.2"),
        connection(1, 1, "10.99.0.3"),  # Sent again once: a lost packet.
        connection(4, 9, "10.99.0.4"),  # Its peer does not read.
        connection(0, 0, "10.99.0.5"),
    )
    assert [parse(entry).remote for entry in entries if is_stalled(entry, 2)] == ["10.99.0.2"]


def test_the_counter_of_lost_segments() -> None:
    text = "TcpExt: TCPFastRetrans A TCPSlowStartRetrans TCPOFOQueue\nTcpExt: 3 9 20 100\nIpExt: A\nIpExt: 5\n"
    assert lost_segments(text) == 123
    assert lost_segments("TcpExt: A\nTcpExt: 1\n") == lost_segments("") == 0
    assert lost_segments(Path("/proc/net/netstat").read_text()) >= 0


def test_the_counter_of_timeouts() -> None:
    assert timeouts("TcpExt: SyncookiesSent TCPTimeouts X\nTcpExt: 1 42 3\nIpExt: A\nIpExt: 5\n") == 42
    assert timeouts("TcpExt: A\nTcpExt: 1\n") == timeouts("") == 0
    assert timeouts(Path("/proc/net/netstat").read_text()) >= 0


def test_the_kernel_reports_unacknowledged_data() -> None:
    # Only that the kernel's answer has the expected form; the lab tests stalls.
    assert unacknowledged(200) == set()


def test_the_question_names_state_and_port() -> None:
    asked = request_body(socket.AF_INET6, 1 << ESTABLISHED, 6379)
    assert len(asked) == 56
    assert asked[:2] == bytes([socket.AF_INET6, socket.IPPROTO_TCP])
    assert struct.unpack_from("=I", asked, 4)[0] == 1 << ESTABLISHED
    assert asked[10:12] == (6379).to_bytes(2, "big")


def test_the_table_has_the_same_content() -> None:
    table = TABLE.format(any4=kernels("0.0.0.0"), node=kernels("10.99.0.2"), head=kernels("10.99.0.1"))
    assert list(parse_table(table, LISTEN)) == [Socket(8000, "0.0.0.0", "0.0.0.0", "1508")]
    assert list(parse_table(table, ESTABLISHED, 6379)) == [Socket(0xD431, "10.99.0.2", "10.99.0.1", "1600")]
    wide = f"head\n 0: {'0' * 16}{kernels('0.0.255.255')}{kernels('10.99.0.1')}:2711 {'0' * 32}:0000 0A 0 0 0 0 0 7\n"
    assert list(parse_table(wide, LISTEN)) == [Socket(10001, "10.99.0.1", "::", "7")]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_connections_to_one_address_are_closed_and_no_others(family: int) -> None:
    """gRPC's sockets are of IPv6 with IPv4 addresses in them."""
    if os.geteuid() != 0:
        pytest.skip("the kernel closes sockets for root only")
    with ExitStack() as opened:
        prefix = "::ffff:" if family == socket.AF_INET6 else ""
        there, elsewhere = IPv4Address("127.0.0.77"), IPv4Address("127.0.0.78")
        listeners = [opened.enter_context(socket.create_server((str(ip), 0))) for ip in (there, elsewhere)]
        clients = []
        for listener in listeners:
            client = opened.enter_context(socket.socket(family))
            client.connect((prefix + listener.getsockname()[0], listener.getsockname()[1]))
            opened.enter_context(listener.accept()[0])
            clients.append(client)
        assert close_connections(there) == 1
        with pytest.raises(ConnectionAbortedError):
            clients[0].send(b"x")
            clients[0].recv(1)
        assert clients[1].send(b"x") == 1


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_the_owner_of_a_port_is_found(kind: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as mine:
        mine.bind(("127.0.0.1", 0))
        if kind == "tcp":
            mine.listen()
        port = mine.getsockname()[1]
        assert holder_of(port, kind) == f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
    assert holder_of(port, kind) == ""
