"""Many datagrams in one message, and those that do not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.relay.frames import (
    FULL_MESSAGE_BYTES,
    MAX_DATAGRAM_BYTES,
    MAX_MESSAGE_BYTES,
    MIN_DATAGRAM_BYTES,
    Backlog,
    FrameError,
    pack,
    runs,
    unpack,
)

DATAGRAM = st.binary(min_size=MIN_DATAGRAM_BYTES, max_size=200)


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


@given(st.lists(st.integers(1, 2000), max_size=200))
def test_gso_runs_are_split_by_the_kernel(sizes: list[int]) -> None:
    datagrams = [memoryview(bytes(size)) for size in sizes]
    grouped = list(runs(datagrams))
    assert [datagram for run in grouped for datagram in run] == datagrams
    for run in grouped:
        assert {len(datagram) for datagram in run[:-1]} <= {len(run[0])}
        assert len(run[-1]) <= len(run[0])
        assert len(run) <= 64
        assert sum(map(len, run)) <= 65000


def test_a_burst_of_full_datagrams_and_a_rest_is_one_run() -> None:
    assert [len(run) for run in runs([memoryview(bytes(1452))] * 30 + [memoryview(bytes(100))])] == [31]


def test_a_datagram_of_any_size_is_a_run() -> None:
    assert [len(run) for run in runs([memoryview(bytes(MAX_DATAGRAM_BYTES))] * 2)] == [1, 1]


def numbered(*numbers: int, size: int = 1000) -> list[bytes]:
    return [number.to_bytes(4, "big") * (size // 4) for number in numbers]


def test_the_oldest_are_dropped() -> None:
    backlog = Backlog(limit=3000)
    backlog.put(numbered(1, 2))
    backlog.put(numbered(3, 4, 5))
    assert (len(backlog), backlog.size, backlog.dropped) == (3, 3000, 2)
    assert unpack(backlog.take()) == numbered(3, 4, 5)
    assert (len(backlog), backlog.size, backlog.take()) == (0, 0, b"")


def test_the_newest_stay_when_a_connection_comes_late() -> None:
    backlog = Backlog(limit=10_000)
    backlog.put(numbered(1, 2, 3))
    backlog.drop_beyond(1500)
    assert unpack(backlog.take()) == numbered(3)


def test_datagrams_not_from_wireguard_are_skipped() -> None:
    backlog = Backlog(limit=10_000)
    backlog.put([b"", b"x" * 31, *numbered(1)])
    assert unpack(backlog.take()) == numbered(1)


@given(st.lists(st.lists(st.integers(32, 65507).map(bytes), max_size=4), max_size=10))
def test_memory_is_bounded_and_no_message_is_too_large(batches: list[list[bytes]]) -> None:
    backlog = Backlog(limit=256 * 1024)
    for batch in batches:
        backlog.put(batch)
        assert backlog.size <= 256 * 1024
    taken = 0
    while message := backlog.take():
        assert len(message) <= MAX_MESSAGE_BYTES
        assert not len(backlog) or len(message) >= FULL_MESSAGE_BYTES
        taken += len(unpack(message))
    assert taken + backlog.dropped == sum(map(len, batches))
    assert backlog.size == 0
