"""Scan all 65535 TCP ports of a host in a second: a program that runs inside of a host.

    python -m tests.lab.scan 203.0.113.10 fe80::1%eth0
    {"203.0.113.10": {"open": [51888], "silent": 10006}, …}
    python -m tests.lab.scan --ports=80,443 203.0.113.10

It sends the first packet of a connection to each port and waits for the answer: a listening port answers SYN ACK,
another one RST, and a guarded one nothing. Silent ports are tried again: packets get lost.
"""

from __future__ import annotations

import errno
import json
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tests.lab.host import REPOSITORY, Host

_SYN, _RST, _ACK = 2, 4, 16
#: The time to wait for answers after the last packet, seconds: the kernel of one machine answers at once.
_PATIENCE_S = 0.3
_ROUNDS = 2
_ADDRESS_S = 5.0
_BUFFER = 32 * 2**20
#: The kernel fills in the checksum at this place of the header (RFC 3542).
_IPV6_CHECKSUM = 7
_AT_ONCE = 256
#: From asm-generic/socket.h; Python has no name for it.
_SO_RCVBUFFORCE = 33


def open_ports(host: Host, *addresses: str, ports: Sequence[int] = ()) -> list[set[int]]:
    """Return the ports of each address that answer this host; of all ports, or of these."""
    some = [f"--ports={','.join(map(str, ports))}"] if ports else []
    done = host.run([sys.executable, "-m", "tests.lab.scan", *some, *addresses], cwd=REPOSITORY)
    return [set(done.json()[address]["open"]) for address in addresses]


def scan(address: str, ports: Iterable[int]) -> tuple[set[int], set[int]]:
    """Return the ports that answered SYN ACK, and those that did not answer."""
    family, _, _, _, target = socket.getaddrinfo(address, None)[0]
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 16)
        _connect(raw, target)
        own = random.randrange(30000, 60000)
        base = _base_sum(raw.getsockname()[0], str(target[0]), own) if family == socket.AF_INET else None
        found: set[int] = set()
        silent = set(ports)
        for _ in range(_ROUNDS):
            found |= _ask(raw, silent, own, base)
        return found, silent


def _connect(raw: socket.socket, target: Any) -> None:
    """Connect the socket. A new IPv6 address cannot be used for a second (RFC 4862, duplicate address detection)."""
    end = time.monotonic() + _ADDRESS_S
    while True:
        try:
            raw.connect(target)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def _ask(raw: socket.socket, silent: set[int], own: int, base: int | None) -> set[int]:
    found: set[int] = set()
    for number, port in enumerate(sorted(silent)):
        checksum = _folded(base + port) if base is not None else 0
        raw.send(struct.pack("!HHIIBBHHH", own, port, 0, 0, 5 << 4, _SYN, 64240, checksum, 0))
        if number % _AT_ONCE == 0:
            _hear(raw, own, silent, found, 0)
    _hear(raw, own, silent, found, _PATIENCE_S)
    return found


def _hear(raw: socket.socket, own: int, silent: set[int], found: set[int], patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while select.select([raw], [], [], max(0.0, until - time.monotonic()))[0]:
        packet = raw.recv(200)
        # An IPv4 socket includes the network's header.
        start = (packet[0] & 15) * 4 if raw.family == socket.AF_INET else 0
        port, to = struct.unpack_from("!HH", packet, start)
        flags = packet[start + 13]
        if to != own:
            continue
        silent.discard(port)
        if flags & (_SYN | _ACK | _RST) == _SYN | _ACK:
            found.add(port)


def _base_sum(source: str, target: str, own: int) -> int:
    """Return the checksum (RFC 793) of everything but the target port."""
    header = (
        socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!HHHHH", 6, 20, own, 5 << 12 | _SYN, 64240)
    )
    return sum(struct.unpack(f"!{len(header) // 2}H", header))


def _folded(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


if __name__ == "__main__":
    answers = {}
    chosen = [argument for argument in sys.argv[1:] if argument.startswith("--ports=")]
    wanted = [int(word) for argument in chosen for word in argument[8:].split(",")] or range(1, 65536)
    for each in sys.argv[1 + len(chosen) :]:
        answering, quiet = scan(each, wanted)
        answers[each] = {"open": sorted(answering), "silent": len(quiet)}
    print(json.dumps(answers))
