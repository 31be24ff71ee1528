"""The limit for wrong passes."""

from __future__ import annotations

import pytest

from meshray.errors import MeshrayError
from meshray.web import attempts as module
from meshray.web.attempts import Attempts


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(attempts: Attempts, address: str) -> bool:
    try:
        attempts.require(address)
    except MeshrayError as error:
        assert error.code == "busy"
        return True
    return False


def test_an_address_has_ten_wrong_passes_and_ten_a_minute() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(10):
        assert not refused(attempts, "192.0.2.1")
        attempts.failed("192.0.2.1")
    assert refused(attempts, "192.0.2.1")
    assert not refused(attempts, "192.0.2.2")
    clock.now += 6.1
    assert not refused(attempts, "192.0.2.1")
    attempts.failed("192.0.2.1")
    assert refused(attempts, "192.0.2.1")


def test_a_network_shares_a_limit() -> None:
    attempts = Attempts(Clock())
    for number in range(60):
        attempts.failed(f"192.0.2.{number}")
    assert refused(attempts, "192.0.2.200")
    assert not refused(attempts, "198.51.100.1")
    for number in range(60):
        attempts.failed(f"2001:db8:0:{number:x}::1")
    assert refused(attempts, "2001:db8:0:ffff::1")
    assert not refused(attempts, "2001:db8:1::1")


@pytest.mark.parametrize("address", ["", "no address", "fe80::1%eth0"])
def test_any_text_is_a_source(address: str) -> None:
    attempts = Attempts(Clock())
    attempts.failed(address)
    assert not refused(attempts, address)


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SOURCES", 10)
    attempts = Attempts(Clock())
    for number in range(100):
        attempts.failed(f"10.{number}.0.1")
    assert len(attempts._buckets) == 10
