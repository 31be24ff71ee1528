"""The table that the agent owns, as bytes. The lab tests what the kernel makes of them."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from meshray.firewall import Closed, Opening
from meshray.firewall.nfnetlink import answered, owned_table
from meshray.firewall.own_rules import own_rules
from meshray.linux.netlink import attributes

OPENING = Opening("meshray0", IPv4Network("10.99.0.0/16"), forwards=True, ports=(51888,), strict=True)
CLOSED = Closed(
    ((6379, 6379), (10002, 19999)), (("fe80::1", ((7, 9),)),), (("ip", ((10500, 10500),)),), ((6379, 6379),)
)
_HEADER = struct.Struct("=IHHII")


def messages(batch: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    place = 0
    while place < len(batch):
        length, kind, flags, number, _ = _HEADER.unpack_from(batch, place)
        yield kind, flags, number, batch[place + _HEADER.size + 4 : place + length]
        place += length
    assert place == len(batch)


def test_a_batch_is_sent_whole_and_requests_one_answer() -> None:
    batch, last = owned_table("x", own_rules(OPENING, CLOSED), replaces=False)
    found = list(messages(batch))
    assert (found[0][0], found[-1][0]) == (0x10, 0x11)
    assert [number for _, _, number, _ in found] == [0, *range(1, last + 1), last + 1]
    assert [number for _, flags, number, _ in found if flags & 4] == [last]
    assert attributes(found[1][3])[2] == struct.pack("!I", 2)  # The owner flag.
    comments = [attributes(body)[7][2:-1].decode() for kind, _, _, body in found if kind == 10 << 8 | 6]
    wanted = [
        rule.comment for rules in own_rules(OPENING, CLOSED).values() for rule in rules for _ in rule.ports or [None]
    ]
    assert comments == wanted


def test_an_existing_table_is_replaced_in_the_same_batch() -> None:
    batch, _ = owned_table("x", own_rules(OPENING, CLOSED), replaces=True)
    assert [kind & 0xFF for kind, _, _, _ in messages(batch)][1:3] == [2, 0]


def answer(number: int, refused: int = 0) -> bytes:
    return _HEADER.pack(36, 2, 0, number, 0) + struct.pack("=i", -refused) + bytes(16)


def test_answers_of_the_kernel_are_decoded() -> None:
    assert answered(answer(7), 7) == (True, 0)
    assert answered(answer(1), 7) == (False, 0)
    assert answered(answer(1) + answer(3, errno.EPERM), 7) == (True, errno.EPERM)


@given(st.binary(max_size=200), st.integers(0, 100))
def test_any_bytes_are_survived(data: bytes, last: int) -> None:
    done, refused = answered(data, last)
    assert done in (True, False) and isinstance(refused, int)
