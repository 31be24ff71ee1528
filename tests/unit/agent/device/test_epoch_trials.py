from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.device.epoch_trials import GIVE_UP_S, SLOT_S, STALE_S, EpochTrials
from meshray.linux.clock import BootSeconds
from meshray.model.node import STATIC, Node
from meshray.wireguard.config import DeviceState, PeerConfig, PeerState
from tests.unit.agent.sample import HEAD_NODE, WORKER_A


def device(other: Node, handshake_at: float | None) -> DeviceState:
    at = BootSeconds(handshake_at) if handshake_at is not None else None
    peer = PeerState(PeerConfig(other.public_key, frozenset()), handshake_at=at)
    return DeviceState(None, 51888, (), 1420, True, {other.public_key: peer})


@given(
    st.sets(st.integers(1, 9), min_size=1, max_size=4), st.sets(st.integers(1, 9), max_size=3), st.integers(0, 10**6)
)
def test_two_ends_with_different_maps_meet(of_one: set[int], more: set[int], slot: int) -> None:
    """Whatever the two hold in common is tried by both at the same time, for long enough, and the clocks differ."""
    of_other = more | {max(of_one)}
    for shift_s in (0.0, 4.0):
        one, other = EpochTrials({}), EpochTrials({})
        met = 0
        for tenth in range(int(GIVE_UP_S)):
            now = (slot + 1) * SLOT_S + tenth
            one.choose(WORKER_A, [HEAD_NODE], device(HEAD_NODE, None), BootSeconds(now), held=of_one)
            other.choose(HEAD_NODE, [WORKER_A], device(WORKER_A, None), BootSeconds(now + shift_s), held=of_other)
            # A node that holds one epoch uses it.
            met += one.tried.get(HEAD_NODE.id, max(of_one)) == other.tried.get(WORKER_A.id, max(of_other))
        assert met >= SLOT_S / 2


def test_a_working_epoch_stays_and_the_maps_epoch_is_tried_again() -> None:
    trials = EpochTrials({})
    assert not trials.choose(
        WORKER_A, [HEAD_NODE], device(HEAD_NODE, 1000.0), BootSeconds(1000.0 + STALE_S - 1), held={1, 2}
    )
    assert trials.tried == {}
    stale = device(HEAD_NODE, 1000.0)
    assert not trials.choose(WORKER_A, [HEAD_NODE], stale, BootSeconds(1000.0 + STALE_S), held={1, 2}), (
        "the map's comes first"
    )
    assert trials.choose(WORKER_A, [HEAD_NODE], stale, BootSeconds(1000.0 + STALE_S + SLOT_S), held={1, 2})
    chosen = dict(trials.tried)
    for later in range(0, 120, 10):
        handshake_at = device(HEAD_NODE, 1160.0 + later)
        assert not trials.choose(WORKER_A, [HEAD_NODE], handshake_at, BootSeconds(1160.0 + later), held={1, 2})
        assert trials.tried == chosen
    assert trials.choose(WORKER_A, [], device(HEAD_NODE, 1150.0), BootSeconds(1300.0), held={1, 2})
    assert trials.tried == {}


def test_no_peer_is_tried_for_ever_and_no_static_one_at_all() -> None:
    trials = EpochTrials({})
    for now in (0.0, SLOT_S):
        trials.choose(WORKER_A, [HEAD_NODE], device(HEAD_NODE, None), BootSeconds(now), held={1, 2})
    assert trials.tried
    trials.choose(WORKER_A, [HEAD_NODE], device(HEAD_NODE, None), BootSeconds(GIVE_UP_S), held={1, 2})
    assert not trials.tried
    phone = replace(HEAD_NODE, roles=frozenset({STATIC}))
    assert not trials.choose(WORKER_A, [phone], device(phone, None), BootSeconds(0.0), held={1, 2})
    assert not trials.choose(WORKER_A, [HEAD_NODE], device(HEAD_NODE, None), BootSeconds(0.0), held={2})
