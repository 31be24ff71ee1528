"""The kernel's filter for the packets on the overlay's interface, interpreted as the kernel does."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest

from meshray.agent.paths.traffic import MOST_IGNORED, filter_of, peer_of
from meshray.defaults import METRICS_PORT, PROBE_PORT
from meshray.model.address import OverlayNetwork

NETWORK = OverlayNetwork.parse("10.99.0.0/16")
ME, PEER, OTHER, OUTSIDE = map(IPv4Address, ("10.99.0.2", "10.99.0.7", "10.99.0.8", "192.0.2.1"))
TCP, UDP, ICMP = 6, 17, 1


def packet(
    source: IPv4Address, destination: IPv4Address, protocol: int = TCP, *, ports: tuple[int, int] = (5, 6)
) -> bytes:
    header = struct.pack("!BBHHHBBH4s4s", 0x46, 0, 28, 0, 0, 64, protocol, 0, source.packed, destination.packed)
    return header + bytes(4) + struct.pack("!HH", *ports) + bytes(20)  # the header has one word of options


def passed(program: bytes, data: bytes) -> int:  # noqa: C901 - a table
    """Run the program; return the number of bytes that it passes."""
    lines = list(struct.iter_unpack("=HBBI", program))
    assert len(lines) <= 4096
    accumulator = index = saved = at = 0
    while True:
        code, jump_true, jump_false, value = lines[at]
        at += 1
        match code:
            case 0x20:
                accumulator = int.from_bytes(data[value : value + 4], "big")
            case 0x30:
                accumulator = data[value]
            case 0x48:
                accumulator = int.from_bytes(data[index + value : index + value + 2], "big")
            case 0xB1:
                index = 4 * (data[value] & 15)
            case 0x60:
                accumulator = saved
            case 0x02:
                saved = accumulator
            case 0x54:
                accumulator &= value
            case 0x15:
                at += jump_true if accumulator == value else jump_false
            case 0x06:
                return int(value)
            case _:
                pytest.fail(f"unknown instruction {code:#x}")


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP])
def test_packets_in_both_directions_pass(protocol: int) -> None:
    for source, destination in ((ME, PEER), (PEER, ME)):
        data = packet(source, destination, protocol)
        length = passed(filter_of(ME, NETWORK, []), data)
        assert peer_of(data[:length], ME) == PEER


def test_probes_metrics_and_packets_outside_of_the_overlay_are_dropped() -> None:
    program = filter_of(ME, NETWORK, [])
    for port in (PROBE_PORT, METRICS_PORT):
        for ports in ((port, 9), (9, port)):
            assert not passed(program, packet(PEER, ME, UDP, ports=ports))
            assert not passed(program, packet(PEER, ME, TCP, ports=ports))
            assert passed(program, packet(PEER, ME, ICMP, ports=ports)), "ICMP has no ports"
    assert not passed(program, packet(ME, NETWORK.probe_address(PEER)))
    assert not passed(program, packet(ME, OUTSIDE))
    assert not passed(program, b"\x60" + bytes(60)), "IPv6"


def test_ignored_peers_are_dropped_and_all_others_pass() -> None:
    ignored = [IPv4Address(int(OTHER) + number) for number in range(MOST_IGNORED)]
    program = filter_of(ME, NETWORK, ignored)
    assert passed(program, packet(ME, PEER))
    assert not passed(program, packet(ME, ignored[0]))
    assert not passed(program, packet(ignored[-1], ME))
    assert not passed(filter_of(ME, NETWORK, [*ignored, OUTSIDE]), packet(ME, PEER)), "the kernel has a limit"


def test_a_short_header_has_no_peer() -> None:
    assert peer_of(b"\x45" + bytes(18), ME) is None
