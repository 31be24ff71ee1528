"""Many datagrams in one message, in both forms, and those that do not fit."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.relay import frames
from meshray.relay.frames import (
    FULL_MESSAGE_BYTES,
    MAX_DATAGRAM_BYTES,
    MAX_MESSAGE_BYTES,
    MIN_DATAGRAM_BYTES,
    Backlog,
    FrameError,
    Group,
    join,
    runs,
    runs_of_groups,
    split,
    unpack,
)


def pack(datagrams: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(frames.pack(datagrams))


def pack_groups(groups: Iterable[Group]) -> bytes:
    return b"".join(frames.pack_groups(groups))


DATAGRAM = st.binary(min_size=MIN_DATAGRAM_BYTES, max_size=200)


@st.composite
def a_group(draw: st.DrawFn) -> Group:
    """A group as the kernel returns it."""
    size = draw(st.integers(MIN_DATAGRAM_BYTES, 300))
    full = draw(st.integers(1, 100))
    last = draw(st.sampled_from([0, *range(MIN_DATAGRAM_BYTES, size)]))
    return size, bytes(draw(st.integers(0, 255)) for _ in range(2)) * (size * full // 2) + bytes(size * full % 2 + last)


def datagrams_of(message: bytes) -> list[bytes]:
    """Return the datagrams that the kernel makes of a message with groups."""
    found = []
    for size, parts in runs_of_groups(message):
        data = b"".join(parts)
        assert len(data) <= MAX_DATAGRAM_BYTES
        assert len(data) <= 64 * size
        found += [data[begin : begin + size] for begin in range(0, len(data), size)]
    return found


@given(st.lists(DATAGRAM, max_size=50))
def test_packing_and_unpacking_are_inverse(datagrams: list[bytes]) -> None:
    assert unpack(pack(datagrams)) == datagrams


@given(st.binary(max_size=500))
def test_anything_else_is_refused_or_is_a_message(message: bytes) -> None:
    try:
        datagrams = unpack(message)
    except FrameError:
        return
    assert pack([bytes(datagram) for datagram in datagrams]) == message


@pytest.mark.parametrize(
    "message",
    [
        b"\x00",
        b"\x00\x20" + b"x" * 31,
        b"\x00\x00",
        b"\x00\x1f" + b"x" * 31,
        b"\xff\xff" + b"x" * 65535,
        pack([b"x" * 32]) + b"\x01",
    ],
)
def test_garbage_is_refused(message: bytes) -> None:
    with pytest.raises(FrameError):
        unpack(message)


@given(st.lists(a_group(), max_size=8))
def test_the_kernel_makes_the_datagrams_of_the_groups_again(groups: list[Group]) -> None:
    assert datagrams_of(pack_groups(groups)) == [datagram for group in groups for datagram in split(group)]


@given(st.lists(a_group(), max_size=20))
def test_joined_groups_have_the_datagrams_of_the_reads(reads: list[Group]) -> None:
    groups = join(reads)
    assert [datagram for group in groups for datagram in split(group)] == [d for group in reads for d in split(group)]
    for size, data in groups:
        assert size <= len(data) <= MAX_DATAGRAM_BYTES


def test_single_reads_of_a_burst_are_one_group() -> None:
    burst = [(1452, bytes(1452))] * 30 + [(100, bytes(100)), (1452, bytes(1452))]
    assert [(size, len(data)) for size, data in join(burst)] == [(1452, 30 * 1452 + 100), (1452, 1452)]


@given(st.binary(max_size=500))
def test_any_other_groups_are_refused_or_are_a_message(message: bytes) -> None:
    try:
        datagrams = datagrams_of(message)
    except FrameError:
        return
    assert all(MIN_DATAGRAM_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES for datagram in datagrams)
    assert sum(len(datagram) for datagram in datagrams) <= len(message)


@pytest.mark.parametrize(
    "message",
    [
        b"\x00",
        b"\x00\x20\x00",
        pack_groups([(32, b"x" * 32)]) + b"\x01",
        pack_groups([(31, b"x" * 31)]),
        pack_groups([(0, b"")]),
        pack_groups([(32, b"")]),
        pack_groups([(33, b"x" * 32)]),
        pack_groups([(32, b"x" * 95)]),
        pack_groups([(65508, b"x" * 65508)]),
        pack_groups([(32, b"x" * 64)])[:-1],
    ],
)
def test_malformed_groups_are_refused(message: bytes) -> None:
    with pytest.raises(FrameError):
        runs_of_groups(message)


@given(st.lists(st.integers(1, 2000), max_size=200))
def test_gso_runs_are_split_by_the_kernel(sizes: list[int]) -> None:
    datagrams = [memoryview(bytes(size)) for size in sizes]
    grouped = list(runs(datagrams))
    assert [datagram for _, run in grouped for datagram in run] == datagrams
    for size, run in grouped:
        assert size == len(run[0])
        assert {len(datagram) for datagram in run[:-1]} <= {size}
        assert len(run[-1]) <= size
        assert len(run) <= 64
        assert sum(map(len, run)) <= MAX_DATAGRAM_BYTES


def test_a_burst_of_full_datagrams_and_a_rest_is_one_run() -> None:
    assert [len(run) for _, run in runs([memoryview(bytes(1452))] * 30 + [memoryview(bytes(100))])] == [31]


def test_a_datagram_of_any_size_is_a_run() -> None:
    assert [len(run) for _, run in runs([memoryview(bytes(MAX_DATAGRAM_BYTES))] * 2)] == [1, 1]


def numbered(*numbers: int, size: int = 1000) -> list[Group]:
    return [(size, number.to_bytes(4, "big") * (size // 4)) for number in numbers]


def test_the_oldest_are_dropped() -> None:
    backlog = Backlog(limit=3000)
    backlog.put(numbered(1, 2))
    backlog.put(numbered(3, 4, 5))
    assert (len(backlog), backlog.size, backlog.dropped) == (3, 3000, 2)
    assert backlog.take() == numbered(3, 4, 5)
    assert (len(backlog), backlog.size, backlog.take()) == (0, 0, [])


def test_dropped_datagrams_are_counted_in_groups_too() -> None:
    backlog = Backlog(limit=1000)
    backlog.put([(100, bytes(950)), (1000, bytes(1000))])
    assert (len(backlog), backlog.size, backlog.dropped) == (1, 1000, 10)


def test_the_newest_stay_when_a_connection_comes_late() -> None:
    backlog = Backlog(limit=10_000)
    backlog.put(numbered(1, 2, 3))
    backlog.drop_beyond(1500)
    assert backlog.take() == numbered(3)


def test_datagrams_not_from_wireguard_are_skipped() -> None:
    backlog = Backlog(limit=10_000)
    short_end = (1000, numbered(2)[0][1] + b"short")
    backlog.put([(0, b""), (31, b"x" * 31), *numbered(1), short_end, (31, b"x" * 62), (500, b"x" * 499)])
    assert backlog.take() == numbered(1, 2)
    assert backlog.size == 0


@given(st.lists(st.lists(st.tuples(st.integers(32, 2000), st.integers(32, 65507)), max_size=4), max_size=10))
def test_memory_is_bounded_and_no_message_is_too_large(batches: list[list[tuple[int, int]]]) -> None:
    backlog = Backlog(limit=256 * 1024)
    put = 0
    for batch in batches:
        groups = [(size, bytes(length - length % size)) for size, length in batch if length >= size]
        backlog.put(groups)
        put += sum(len(data) // size for size, data in groups)
        assert backlog.size <= 256 * 1024
    taken = 0
    while groups := backlog.take():
        in_groups, single = pack_groups(groups), pack(datagram for group in groups for datagram in split(group))
        assert max(len(in_groups), len(single)) <= MAX_MESSAGE_BYTES
        assert not backlog or len(in_groups) + MAX_DATAGRAM_BYTES > FULL_MESSAGE_BYTES
        assert datagrams_of(in_groups) == unpack(single)
        taken += len(unpack(single))
    assert taken + backlog.dropped == put
    assert backlog.size == 0
