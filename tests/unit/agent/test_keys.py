"""The time of a key rotation, its requirements on peers, and clocks that users set."""

from __future__ import annotations

from dataclasses import replace

from meshray.agent.device.handshakes import Handshakes
from meshray.agent.device.key_rotation import MAX_AGE_S, Step, is_old, next_step
from meshray.agent.device.rekeying import FIRST_S, TRIES, Rekeying
from meshray.linux.clock import BootSeconds, ClockWatch, UnixSeconds
from meshray.model.address import Endpoint
from meshray.model.keys import PrivateKey, PublicKey
from meshray.wireguard.config import DeviceState, PeerConfig, PeerState
from meshray.wireguard.plan import AddPeer, RemovePeer

OWN, NEXT, OTHER, FOURTH = (PrivateKey.generate().public() for _ in range(4))
THERE = Endpoint("192.0.2.7", 4000)


def device(**handshakes: float | None) -> DeviceState:
    """Return a device with the peers `own` (dialled) and `other` (not) with these handshakes."""
    keys = {"own": OWN, "next": NEXT, "other": OTHER}
    peers = {
        keys[name]: PeerState(
            PeerConfig(keys[name], frozenset(), endpoint=THERE, keepalive_s=0 if name == "other" else 20),
            last_handshake=UnixSeconds(at) if at is not None else None,
            handshake_at=BootSeconds(at) if at is not None else None,
        )
        for name, at in handshakes.items()
    }
    return DeviceState(None, 1, (), 1420, True, peers)


def step(pending: PublicKey | None, shown: PublicKey | None, *, due: bool = False, may_send: bool = True) -> Step:
    return next_step(OWN, pending, shown, due=due, may_send=may_send)


def test_the_map_decides_which_key_is_used() -> None:
    assert step(NEXT, NEXT, may_send=False) is Step.SWITCH
    assert step(NEXT, OWN) is Step.SEND_PENDING
    assert step(NEXT, OTHER) is Step.SEND_PENDING
    assert step(None, OTHER) is Step.SEND_OWN
    assert step(None, OWN) is Step.WAIT
    assert step(None, OWN, due=True) is Step.GENERATE
    assert step(None, None, due=True) is Step.WAIT, "a node that was removed needs no new key"
    assert step(NEXT, OWN, due=True, may_send=False) is Step.WAIT


def test_keys_live_for_27_to_30_days_and_not_all_equally_long() -> None:
    keys = [PrivateKey.generate().public() for _ in range(100)]
    assert not any(is_old(key, 0.9 * MAX_AGE_S - 1) for key in keys)
    assert all(is_old(key, MAX_AGE_S) for key in keys)
    assert 20 < sum(is_old(key, 0.95 * MAX_AGE_S) for key in keys) < 80


def test_another_nodes_new_key_takes_over_its_endpoint() -> None:
    rekeying = Rekeying()
    rekeying.replaced({OWN: NEXT})
    assert rekeying.take(device(own=5.0), 0.0) == [AddPeer(PeerConfig(NEXT, frozenset(), endpoint=THERE))]
    assert rekeying.take(device(next=None), FIRST_S - 0.1) == []
    again = rekeying.take(device(next=None), FIRST_S)
    assert again == [RemovePeer(NEXT), AddPeer(PeerConfig(NEXT, frozenset(), endpoint=THERE))]
    assert rekeying.is_busy
    assert rekeying.take(device(next=1.0), 10.0) == []
    assert not rekeying.is_busy


def test_a_peer_that_never_answers_is_left_to_wireguard() -> None:
    rekeying, now, made = Rekeying(), 0.0, 0
    rekeying.own_changed()
    while rekeying.is_busy:
        made += len(rekeying.take(device(own=None, other=None), now)) // 2
        now += 0.1
    assert made == 1 + TRIES, "only the one that is dialled, at once and some times again"
    assert now < 60


def test_a_key_that_changes_while_the_tunnel_is_down_costs_nothing() -> None:
    rekeying = Rekeying()
    rekeying.replaced({OTHER: FOURTH})
    assert rekeying.take(None, 0.0) == []
    assert rekeying.take(device(own=1.0), 0.0) == []
    assert not rekeying.is_busy


def last(handshakes: Handshakes, at: float | None, wall: float, boot: float) -> float | None:
    timed = handshakes.timed(device(own=at), UnixSeconds(wall), BootSeconds(boot))
    assert timed is not None
    return timed.peers[OWN].handshake_at


def test_handshakes_do_not_age_by_the_wall_clock() -> None:
    handshakes = Handshakes()
    assert last(handshakes, 998.0, 1000.0, 70.0) == 68.0
    assert last(handshakes, 998.0, 4601.0, 71.0) == 68.0, "an hour forward"
    assert last(handshakes, 4602.0, 4603.0, 73.0) == 72.0
    assert last(handshakes, 4602.0, 1004.0, 74.0) == 72.0, "an hour back"
    assert last(handshakes, 1004.5, 1005.0, 75.0) == 74.5
    assert last(handshakes, 1005.5, 4606.0, 76.0) == 75.0, "new since the last look, however old it seems"
    assert last(handshakes, None, 4607.0, 77.0) is None
    assert Handshakes().timed(None, UnixSeconds(0.0), BootSeconds(0.0)) is None


def test_a_future_handshake_counts_as_now() -> None:
    assert last(Handshakes(), 4600.0, 1000.0, 70.0) == 70.0


def test_a_clock_that_was_set_is_noticed_once_and_one_that_drifts_is_not() -> None:
    watch = ClockWatch(1000.0, 10.0)
    assert watch.jumped_s(1002.0005, 12.0) == 0.0
    assert watch.jumped_s(-2596.0, 14.0) == -3600.0005
    assert watch.jumped_s(-2594.0, 16.0) == 0.0
    assert watch.jumped_s(1008.0, 18.0) == 3600.0


def test_timing_handshakes_changes_nothing_else() -> None:
    state = device(own=998.0, other=None)
    timed = Handshakes().timed(state, UnixSeconds(1000.0), BootSeconds(70.0))
    assert timed is not None
    peers = {key: replace(peer, handshake_at=state.peers[key].handshake_at) for key, peer in timed.peers.items()}
    assert replace(timed, peers=peers) == state
