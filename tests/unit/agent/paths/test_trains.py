from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.paths.trains import (
    LONG_TRAIN,
    PACKET_BYTES,
    PAUSE_S,
    PAYLOAD_BYTES,
    SHORT_TRAIN,
    Arrivals,
    Car,
    Report,
    Samples,
    read,
)

TRAIN = b"12345678"


def arrive(mbit_s: float, length: int, lost: tuple[int, ...] = ()) -> Report:
    per_packet_ns = int(PACKET_BYTES * 8 * 1000 / mbit_s)
    times = [1_000_000 + number * per_packet_ns for number in range(length) if number not in lost]
    arrivals = Arrivals(TRAIN, times[0], times[0])
    for now_ns in times[1:]:
        arrivals = arrivals.and_one(now_ns)
    return arrivals.report()


@pytest.mark.parametrize("mbit_s", [0.5, 10.0, 94.0, 800.0])
def test_the_spread_of_a_train_is_the_rate(mbit_s: float) -> None:
    assert arrive(mbit_s, LONG_TRAIN).mbit_s == pytest.approx(mbit_s, rel=0.01)
    # A third of it lost in the middle makes it slower, never faster.
    lossy = arrive(mbit_s, LONG_TRAIN, lost=tuple(range(10, 74))).mbit_s
    assert lossy == pytest.approx(mbit_s * 2 / 3, rel=0.02)


def test_a_slow_link_is_spared_the_long_train() -> None:
    assert arrive(10.0, SHORT_TRAIN).is_enough
    assert not arrive(200.0, SHORT_TRAIN).is_enough
    assert (SHORT_TRAIN + LONG_TRAIN) * PACKET_BYTES <= 256 * 1024


def test_what_came_all_at_once_tells_nothing() -> None:
    assert Report(TRAIN, 18000, 5_000).mbit_s is None
    assert Report(TRAIN, 0, 0).mbit_s is None


def test_a_clock_that_is_set_back() -> None:
    assert Arrivals(TRAIN, 5000, 5000).and_one(1000).report().spread_ns == 0


def test_datagrams_are_read_as_they_were_written() -> None:
    car, report = Car(TRAIN, 15, 16), Report(TRAIN, 18000, 1_500_000_000)
    assert len(car.to_bytes()) == PAYLOAD_BYTES
    assert (read(car.to_bytes()), read(report.to_bytes())) == (car, report)
    assert car.is_last
    # So long a train nobody sends; a packet beyond its train's end neither.
    assert read(Car(TRAIN, 1, LONG_TRAIN + 1).to_bytes()) is None
    assert read(Car(TRAIN, 16, 16).to_bytes()) is None


@given(st.binary(max_size=PAYLOAD_BYTES + 5))
def test_garbage_is_nothing(garbage: bytes) -> None:
    read(garbage)
    read(b"mt\x01" + garbage)
    read((b"mt\x02" + garbage)[:23])


def test_a_sample_for_each_new_path_and_not_too_often() -> None:
    samples = Samples()
    assert samples.is_due("a", "hub", 0)
    samples = samples.took("a", "hub", 0)
    assert not samples.is_due("a", "hub", PAUSE_S * 5)
    assert not samples.is_due("a", "direct", PAUSE_S - 1)
    assert samples.is_due("a", "direct", PAUSE_S)
    assert samples.is_due("b", "hub", 1)
