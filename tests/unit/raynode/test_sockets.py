"""The kernel's answer about sockets, as bytes and as text, means the same."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from meshray.raynode.sockets import ESTABLISHED, LISTEN, TcpSocket, parse, parse_table, question

#: Addresses are words in this machine's byte order: see `kernels`.
TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: {any4}:1F40 {any4}:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1508 1 0000 100 0 0 10 0
   1: {node}:D431 {head}:18EB 01 00000000:00000000 00:00000000 00000000     0        0 1600 1 0000 20 4 30 10 -1
   2: {node}:D432 {head}:0050 01 00000000:00000000 00:00000000 00000000     0        0 1601 1 0000 20 4 30 10 -1
"""


def kernels(address: str) -> str:
    """An address as /proc/net/tcp has it."""
    return f"{struct.unpack('=I', socket.inet_aton(address))[0]:08X}"


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def listening(family: int, port: int, address: bytes, inode: int) -> bytes:
    ends = struct.pack("!HH", port, 0) + address.ljust(16, b"\0") + bytes(16)
    return struct.pack("=BBBB", family, LISTEN, 0, 0) + ends + bytes(12) + struct.pack("=5I", 0, 0, 0, 0, inode)


def test_answers_of_the_kernel() -> None:
    mapped = bytes(10) + b"\xff\xff" + bytes([10, 99, 0, 1])
    data = (
        message(20, listening(socket.AF_INET, 8000, bytes(4), 1508))
        + message(20, listening(socket.AF_INET6, 10001, mapped, 1509))
        + message(20, listening(socket.AF_INET6, 22, bytes(16), 1510))
    )
    found, done = parse(data)
    assert [(each.port, each.address, each.inode) for each in found] == [
        (8000, "0.0.0.0", "1508"),
        (10001, "10.99.0.1", "1509"),
        (22, "::", "1510"),
    ]
    assert not done
    assert parse(data + message(3, bytes(4))) == (found, True)


def test_a_refusal_is_told() -> None:
    with pytest.raises(OSError, match="refused") as caught:
        parse(message(2, struct.pack("=i", -errno.ENOENT) + bytes(16)))
    assert caught.value.errno == errno.ENOENT


def test_the_question_names_state_and_port() -> None:
    asked = question(socket.AF_INET6, ESTABLISHED, 6379)
    assert struct.unpack_from("=I", asked)[0] == len(asked) == 72
    assert asked[16:18] == bytes([socket.AF_INET6, socket.IPPROTO_TCP])
    assert struct.unpack_from("=I", asked, 20)[0] == 1 << ESTABLISHED
    assert asked[26:28] == (6379).to_bytes(2, "big")


def test_the_table_says_the_same() -> None:
    table = TABLE.format(any4=kernels("0.0.0.0"), node=kernels("10.99.0.2"), head=kernels("10.99.0.1"))
    assert list(parse_table(table, LISTEN)) == [TcpSocket(8000, "0.0.0.0", "0.0.0.0", "1508")]
    assert list(parse_table(table, ESTABLISHED, 6379)) == [TcpSocket(0xD431, "10.99.0.2", "10.99.0.1", "1600")]
    wide = f"head\n 0: {'0' * 16}{kernels('0.0.255.255')}{kernels('10.99.0.1')}:2711 {'0' * 32}:0000 0A 0 0 0 0 0 7\n"
    assert list(parse_table(wide, LISTEN)) == [TcpSocket(10001, "10.99.0.1", "::", "7")]
