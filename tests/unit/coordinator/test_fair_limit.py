"""The entry that must end when there are too many."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.coordinator.fair_limit import FairLimit, source_of
from meshray.coordinator.request_limits import MAX_OF_MEMBER, RequestLimits
from meshray.errors import MeshrayError


def evicted_by(most: int | None, addresses: list[str], most_of_source: int | None = None) -> list[int]:
    """Return the evicted entries, as numbers of the addresses, in order."""
    gone: list[int] = []
    limit = FairLimit[int](most, gone.append, most_of_source=most_of_source)
    for number, address in enumerate(addresses):
        limit.add(number, source_of(address))
    assert len(limit) == len(addresses) - len(gone)
    return gone


def test_a_large_group_loses_its_own_oldest_connection() -> None:
    assert evicted_by(3, ["203.0.113.9", *["192.0.2.1"] * 5]) == [1, 2, 3]
    assert evicted_by(3, [*["192.0.2.1"] * 3, "203.0.113.9", "203.0.113.9"]) == [0, 1]


def test_a_crowd_may_come_from_a_whole_network() -> None:
    network = [f"2001:db8:0:{number:x}::1" for number in range(8)]
    assert evicted_by(4, ["2001:db9::1", *network]) == [1, 2, 3, 4, 5]
    assert evicted_by(4, ["198.51.100.1", *(f"192.0.2.{number}" for number in range(8))]) == [1, 2, 3, 4, 5]
    # Within the network as well: the address that has two loses first.
    assert evicted_by(3, ["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3"]) == [1]


def test_of_equal_shares_the_oldest_goes() -> None:
    assert evicted_by(2, ["192.0.2.1", "198.51.100.1", "203.0.113.1"]) == [0]


def test_a_source_may_have_a_bound_of_its_own() -> None:
    assert evicted_by(None, ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1"], most_of_source=2) == [0]


def test_a_withdrawn_use_is_not_counted() -> None:
    gone: list[str] = []
    limit = FairLimit[str](1, gone.append)
    limit.add("a", source_of("192.0.2.1"))
    limit.discard("a")
    limit.discard("a")
    limit.add("b", source_of("192.0.2.1"))
    limit.add("b", source_of("192.0.2.1"))
    assert not gone and "b" in limit and "a" not in limit


@given(st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8::1", "nonsense"]), max_size=60))
def test_the_total_is_limited_and_a_larger_share_does_not_harm_others(addresses: list[str]) -> None:
    held: list[int] = []
    limit = FairLimit[int](5, held.remove)
    for number, address in enumerate(addresses):
        held.append(number)
        before = Counter(source_of(addresses[other])[0] for other in held)
        kept = list(held)
        limit.add(number, source_of(address))
        assert len(limit) == len(held) <= 5
        for other in set(kept) - set(held):
            assert before[source_of(addresses[other])[0]] == max(before.values())
            assert other != number


def test_members_and_unauthenticated_clients_have_separate_limits() -> None:
    limits = RequestLimits(most=2)
    with limits.taking(""), limits.taking(""):
        with pytest.raises(MeshrayError, match="overloaded"), limits.taking(""):
            pass
        with limits.taking("a"), limits.taking("b"):
            with pytest.raises(MeshrayError, match="overloaded"), limits.taking("c"):
                pass
            with limits.taking("admin", is_admin=True):
                pass
    with limits.taking("c"), limits.taking(""):
        pass


def test_one_member_has_a_bound_of_its_own() -> None:
    limits = RequestLimits(most=1000)
    taken = [limits.taking("a") for _ in range(MAX_OF_MEMBER)]
    for one in taken:
        one.__enter__()
    with pytest.raises(MeshrayError) as error, limits.taking("a"):
        pass
    assert error.value.code == "busy"
    with limits.taking("b"):
        pass
    taken[0].__exit__(None, None, None)
    with limits.taking("a"):
        pass
