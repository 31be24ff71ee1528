"""Ask an Ethernet which machines have an IPv4 address: the probe of RFC 5227, section 2.1.1.

A probe has the sender address 0.0.0.0, so that no machine learns anything from it. Each owner of the address answers,
and routers that answer for other networks (proxy ARP) do not. It requires CAP_NET_RAW.

    >>> owners_on({Link("eth0", bytes.fromhex("020000000001")): (IPv4Address("192.168.7.10"),)})
    {IPv4Address('192.168.7.10'): (b'\\x02\\x00\\x00\\x00\\x00\\x02',)}
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import NamedTuple

#: ETH_P_ARP and ETH_P_IP of linux/if_ether.h, ARPHRD_ETHER of linux/if_arp.h.
_ARP, _IP, _ETHERNET = 0x0806, 0x0800, 1
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6
#: RFC 826: hardware, protocol, their lengths, operation; sender's MAC and IP address; target's.
_PACKET = struct.Struct("!HHBBH6s4s6s4s")
#: The second probe is for the case that the first is lost. Machines on a LAN answer within milliseconds, those on
#: Wi-Fi that sleep within 0.1 s to 0.3 s (one beacon interval is 102 ms). Seconds.
_SENT_AT, _UNTIL_S = (0.0, 0.2), 0.5
#: More owners of one address are not listed.
_MAX_OWNERS = 4
#: Packets read at most: a broadcast storm must not keep this process busy.
_MAX_PACKETS = 2000


class Link(NamedTuple):
    """An Ethernet interface: its name and its MAC address."""

    name: str
    mac: bytes


def probe(mac: bytes, address: IPv4Address) -> bytes:
    """Return the ARP packet by which the interface with this MAC address asks who has the address."""
    return _PACKET.pack(_ETHERNET, _IP, 6, 4, _REQUEST, mac, bytes(4), bytes(6), address.packed)


def claim(packet: bytes) -> tuple[IPv4Address, bytes] | None:
    """Return (address, MAC address) that the sender of an ARP packet claims; None: it claims none."""
    if len(packet) < _PACKET.size:
        return None
    hardware, protocol, hardware_size, protocol_size, operation, mac, ip, _, _ = _PACKET.unpack_from(packet)
    form = (hardware, protocol, hardware_size, protocol_size)
    if form != (_ETHERNET, _IP, 6, 4) or operation not in (_REQUEST, _REPLY) or not any(ip) or not any(mac):
        return None
    return IPv4Address(ip), mac


def owners_on(asked: Mapping[Link, Sequence[IPv4Address]]) -> dict[IPv4Address, tuple[bytes, ...]]:
    """Return the MAC addresses that claim each address, sorted, for half a second. Blocks.

    Args:
        asked: the addresses to ask for, by the interface to their network.

    Raises:
        OSError: an interface is down, or PermissionError without CAP_NET_RAW.
    """
    found: dict[IPv4Address, set[bytes]] = {address: set() for addresses in asked.values() for address in addresses}
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        sockets = {link: stack.enter_context(_open(link.name)) for link in asked}
        for opened in sockets.values():
            selector.register(opened, selectors.EVENT_READ, opened)
        start, packets, due = time.monotonic(), 0, list(_SENT_AT)
        while (now := time.monotonic() - start) < _UNTIL_S and packets < _MAX_PACKETS:
            if due and due[0] <= now:
                del due[0]
                for link, addresses in asked.items():
                    for address in addresses:
                        sockets[link].sendto(probe(link.mac, address), (link.name, _ARP, 0, _ETHERNET, _BROADCAST))
            for key, _ in selector.select((due[0] if due else _UNTIL_S) - now):
                packets += 1
                _note(found, _receive(key.data))
    return {address: tuple(sorted(macs)) for address, macs in found.items()}


def _open(interface: str) -> socket.socket:
    # Until it is bound, a socket without a protocol receives no packet of other interfaces.
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    try:
        opened.setblocking(False)
        opened.bind((interface, _ARP))
    except OSError:
        opened.close()
        raise
    return opened


def _receive(opened: socket.socket) -> bytes:
    try:
        return opened.recv(_PACKET.size)
    except BlockingIOError:
        return b""


def _note(found: Mapping[IPv4Address, set[bytes]], packet: bytes) -> None:
    claimed = claim(packet)
    if claimed is not None and claimed[0] in found and len(found[claimed[0]]) < _MAX_OWNERS:
        found[claimed[0]].add(claimed[1])
