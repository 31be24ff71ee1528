"""The kernel's counters of an interface and of a UDP port."""

from __future__ import annotations

from meshray.linux.interface_counters import InterfaceCounters, interface_counters, parse_counters
from meshray.linux.udp_queue import UdpQueue, parse_udp_queue

INTERFACES = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo: 100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
meshray0:81234   12    3    4    0     0          0         0     4096      10    5    6    0     0       0          0
"""
UDP = """   sl  local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode ref pointer drops
  100: 00000000:CAB0 00000000:0000 07 00000010:00000200 00:00000000 00000000     0        0 41 2 0000000000000000 7
  101: 0100007F:0035 00000000:0000 07 00000000:00000001 00:00000000 00000000     0        0 42 2 0000000000000000 9
"""


def test_counters_of_the_interface() -> None:
    assert parse_counters(INTERFACES, "meshray0") == InterfaceCounters(81234, 3, 4, 4096, 5, 6)
    assert parse_counters(INTERFACES, "meshray") is None
    assert interface_counters("lo") is not None
    assert interface_counters("no-such") is None


def test_queue_of_the_port() -> None:
    assert parse_udp_queue(UDP, 0xCAB0) == UdpQueue(received_bytes=0x200, dropped=7)
    assert parse_udp_queue(UDP, 1) is None
