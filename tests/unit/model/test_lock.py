"""A compromised coordinator can make agents accept nothing that was not signed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.model.address import NodeName
from meshray.model.attestation import Attestation, Chain, Grant, Removals
from meshray.model.keys import PublicKey, SigningKey, VerifyKey
from meshray.model.lock import Judgement, Pin, Rules, judge
from meshray.model.node import COORDINATOR, HEAD, HUB, STATIC, WORKER, Node

MESH = "00112233aabbccdd"
LOCK, TOKEN, HUB_TOKEN, HEAD_IDENTITY = (SigningKey.generate() for _ in range(4))
IDENTITY, EVE = SigningKey.generate(), SigningKey.generate()
KEYS = [PublicKey(bytes([number]) * 32) for number in range(1, 5)]
IPS = [IPv4Address(f"10.99.0.{number}") for number in (2, 3)]
GRANT = Grant.sign(LOCK, MESH, TOKEN.public(), (), 0)
HUB_GRANT = Grant.sign(LOCK, MESH, HUB_TOKEN.public(), (HUB,), 0)
CHAIN = Chain.sign(TOKEN, GRANT, MESH, IDENTITY.public())
HUB_CHAIN = Chain.sign(HUB_TOKEN, HUB_GRANT, MESH, IDENTITY.public())
OPEN = Rules(MESH, coordinator=HEAD_IDENTITY.public())
LOCKED = Rules(MESH, LOCK.public(), coordinator=HEAD_IDENTITY.public())


def signed(
    key: PublicKey = KEYS[0],
    counter: int = 1,
    *,
    by: SigningKey = IDENTITY,
    ip: IPv4Address | None = None,
    chain: Chain | None = None,
    mesh: str = MESH,
    static: bool = False,
) -> Attestation:
    return Attestation.sign(by, mesh, key, counter=counter, ip=ip, chain=chain, static=static)


def node(
    attestation: Attestation | None, key: PublicKey = KEYS[0], ip: IPv4Address = IPS[0], roles: tuple[str, ...] = ()
) -> Node:
    return Node("n1", NodeName("gpu-1"), ip, key, frozenset(roles or (WORKER,)), attestation=attestation)


def pinned(one: Node, rules: Rules = OPEN) -> Pin:
    judgement = judge(one, None, rules)
    assert judgement.roles is not None, judgement.fault
    assert judgement.pin is not None
    return judgement.pin


def roles_of(judgement: Judgement) -> set[str]:
    assert judgement.roles is not None, judgement.fault
    return set(judgement.roles)


def refused(judgement: Judgement) -> bool:
    """Check that the values are not used: the node is refused, or does not change."""
    as_it_was = judgement.applied(node(None, KEYS[3], IPv4Address("10.99.0.99")))
    pin = judgement.pin
    return bool(judgement.fault) and (
        as_it_was is None or (pin is not None and (as_it_was.public_key, as_it_was.ip) == (pin.key, pin.ip))
    )


def test_without_a_lock_nodes_of_the_previous_version_form_a_mesh() -> None:
    older = node(None, roles=(HUB, WORKER))
    assert judge(older, None, OPEN) == Judgement(older.roles)
    assert roles_of(judge(node(None, roles=(STATIC,)), None, OPEN)) == {STATIC}


def test_a_node_that_gets_an_identity_is_pinned_from_then_on() -> None:
    assert judge(node(signed()), None, OPEN) == Judgement(
        frozenset({WORKER}), Pin(IDENTITY.public(), KEYS[0], IPS[0], 1, frozenset())
    )


@pytest.mark.parametrize("rules", [OPEN, LOCKED])
def test_a_rotated_key_needs_the_identity_and_a_rising_counter(rules: Rules) -> None:
    pin = pinned(node(signed(chain=CHAIN)), rules)
    rotated = judge(node(signed(KEYS[1], 2), KEYS[1]), pin, rules)
    assert roles_of(rotated) == {WORKER}
    assert rotated.pin is not None
    assert (rotated.pin.key, rotated.pin.counter) == (KEYS[1], 2)
    for swapped in (
        node(None, KEYS[2]),  # The signature was removed.
        node(signed(KEYS[2], 9, by=EVE), KEYS[2]),  # Another identity.
        node(signed(KEYS[1], 2), KEYS[2]),  # A signature of another key.
        node(signed(KEYS[0], 1), KEYS[0]),  # Rolled back.
        node(signed(KEYS[2], 2), KEYS[2]),  # Two keys under one counter.
        node(signed(KEYS[2], 9, mesh="another"), KEYS[2]),
        node(signed(KEYS[2], 9, static=True), KEYS[2]),
        node(signed(KEYS[1], 2), KEYS[1], IPS[1]),  # The address of another node.
        node(signed(KEYS[2], 9), KEYS[2], IPS[1]),
        node(signed(KEYS[2], 9, ip=IPS[0]), KEYS[2], IPS[1]),
        node(None, KEYS[2], roles=(STATIC,)),  # Declared a static peer.
        node(signed(KEYS[2], 0, by=HEAD_IDENTITY, static=True), KEYS[2], roles=(STATIC,)),
        node(signed(KEYS[2], 0, by=LOCK, static=True), KEYS[2], roles=(STATIC,)),
    ):
        judgement = judge(swapped, rotated.pin, rules)
        assert refused(judgement), swapped
        assert judgement.pin == rotated.pin
    assert roles_of(judge(node(signed(KEYS[2], 9, ip=IPS[1]), KEYS[2], IPS[1]), rotated.pin, rules)) == {WORKER}


def test_a_pinned_node_needs_no_signature() -> None:
    """A coordinator that was restored shows an older counter, or none, until the node has connected."""
    pin = pinned(node(signed(counter=5)))
    for same in (node(signed(counter=2)), node(None), node(signed(counter=5))):
        assert judge(same, pin, OPEN) == Judgement(frozenset({WORKER}), pin)
    assert judge(node(signed(counter=8)), pin, OPEN).pin == replace(pin, counter=8)
    forged = replace(signed(counter=8), counter=99)
    assert judge(node(forged), pin, OPEN).pin == pin


def test_no_role_is_added_after_the_first_sight() -> None:
    pin = pinned(node(signed()))
    for role in (HUB, HEAD, COORDINATOR):
        judgement = judge(node(signed(), roles=(WORKER, role)), pin, OPEN)
        assert roles_of(judgement) == {WORKER}
        assert role in judgement.fault


def test_the_lock_admits_only_nodes_at_the_end_of_its_chain() -> None:
    of_eve = Chain.sign(EVE, GRANT, MESH, EVE.public())
    own_lock = Grant.sign(EVE, MESH, EVE.public(), (HUB,), 0)
    for outsider in (
        node(None),
        node(None, roles=(STATIC,)),
        node(signed()),
        node(signed(by=EVE, chain=CHAIN)),
        node(signed(by=EVE, chain=of_eve)),
        node(signed(by=EVE, chain=Chain.sign(EVE, own_lock, MESH, EVE.public()))),
        node(signed(by=EVE, chain=Chain.sign(EVE, replace(HUB_GRANT, key=EVE.public()), MESH, EVE.public()))),
        node(signed(by=HEAD_IDENTITY, static=True), roles=(STATIC,)),
    ):
        assert refused(judge(outsider, None, LOCKED)), outsider
    assert roles_of(judge(node(signed(chain=CHAIN)), None, LOCKED)) == {WORKER}
    assert roles_of(judge(node(signed(by=LOCK, static=True), roles=(STATIC,)), None, LOCKED)) == {STATIC}


def test_the_chain_names_the_roles() -> None:
    both = (WORKER, HUB, HEAD)
    assert roles_of(judge(node(signed(chain=CHAIN), roles=both), None, LOCKED)) == {WORKER}
    assert roles_of(judge(node(signed(chain=HUB_CHAIN), roles=both), None, LOCKED)) == {WORKER, HUB}
    raised = Chain(replace(GRANT, roles=frozenset({HUB})), CHAIN.signature)
    assert refused(judge(node(signed(chain=raised), roles=both), None, LOCKED))


def test_a_removed_identity_comes_back_by_no_map() -> None:
    pin = pinned(node(signed(chain=CHAIN)), LOCKED)
    rules = replace(LOCKED, removed=frozenset({IDENTITY.public()}), epoch=1)
    for known in (None, pin):
        assert judge(node(signed(chain=CHAIN)), known, rules).roles is None
    assert judge(node(None), pin, rules).roles is None
    phone = node(signed(by=LOCK, static=True), roles=(STATIC,))
    assert refused(judge(phone, None, replace(LOCKED, removed=frozenset({VerifyKey(phone.public_key.raw)}))))


def test_a_token_exposes_removals_that_the_coordinator_hides() -> None:
    grant = Grant.sign(LOCK, MESH, TOKEN.public(), (), 3)
    newer = node(signed(chain=Chain.sign(TOKEN, grant, MESH, IDENTITY.public())))
    assert refused(judge(newer, None, replace(LOCKED, epoch=2)))
    assert roles_of(judge(newer, None, replace(LOCKED, epoch=3))) == {WORKER}


def test_a_static_peer_is_signed_by_the_coordinators_node_without_a_lock() -> None:
    phone = node(signed(counter=0, by=HEAD_IDENTITY, static=True), roles=(STATIC,))
    assert roles_of(judge(phone, None, OPEN)) == {STATIC}
    assert refused(judge(node(signed(counter=0, by=EVE, static=True), roles=(STATIC,)), None, OPEN))
    assert refused(judge(node(signed(counter=0, by=HEAD_IDENTITY), roles=(STATIC,)), None, OPEN))
    assert refused(judge(node(signed(KEYS[1], 1, by=HEAD_IDENTITY, static=True), KEYS[1]), pinned(phone), OPEN))


@given(st.integers(0, 2**53 - 1), st.sets(st.sampled_from([HUB, HEAD, COORDINATOR])), st.booleans())
def test_the_wire_form(counter: int, roles: set[str], bound: bool) -> None:
    chain = Chain.sign(TOKEN, Grant.sign(LOCK, MESH, TOKEN.public(), roles, counter), MESH, IDENTITY.public())
    one = node(signed(counter=counter, ip=IPS[0] if bound else None, chain=chain if roles else None))
    assert Node.of(one.form()) == one
    removals = Removals.sign(LOCK, MESH, counter, [IDENTITY.public()] if bound else [])
    assert Removals.from_json(removals.to_json()) == removals
    assert removals.is_signed(LOCK.public(), MESH)
    assert not replace(removals, epoch=counter + 1).is_signed(LOCK.public(), MESH)
    if one.attestation is not None and one.attestation.chain is not None:
        assert chain.leads(LOCK.public(), MESH, IDENTITY.public())
        assert not chain.leads(LOCK.public(), "another", IDENTITY.public())
    pin = Pin(IDENTITY.public(), KEYS[0], IPS[0], counter, frozenset(roles))
    assert Pin.of(pin.form()) == pin


# Everything that was ever signed, by the node in its life and by an attacker with identities, tokens and a lock of
# their own, in any combination with any key, address and roles.
_HONEST = [
    Attestation.sign(IDENTITY, MESH, key, counter=counter, ip=ip, chain=CHAIN)
    for counter, (key, ip) in enumerate([(KEYS[0], None), (KEYS[0], IPS[0]), (KEYS[1], IPS[0])], start=1)
]
_EVES_GRANT = Grant.sign(EVE, MESH, EVE.public(), (HUB, HEAD), 0)
_CHAINS = [None, CHAIN, HUB_CHAIN, Chain.sign(EVE, _EVES_GRANT, MESH, EVE.public()), Chain(HUB_GRANT, CHAIN.signature)]
_EVES = [
    Attestation.sign(EVE, MESH, key, counter=counter, static=static)
    for key in KEYS[1:]
    for counter in (1, 99)
    for static in (False, True)
]
_SHOWN = st.one_of(
    st.none(),
    st.sampled_from(_HONEST),
    st.builds(lambda one, chain: replace(one, chain=chain), st.sampled_from(_HONEST + _EVES), st.sampled_from(_CHAINS)),
    st.builds(lambda one, counter: replace(one, counter=counter), st.sampled_from(_HONEST), st.integers(0, 9)),
)
_MAPS = st.lists(
    st.builds(
        lambda shown, key, ip, roles: node(shown, key, ip, tuple(roles)),
        _SHOWN,
        st.sampled_from(KEYS),
        st.sampled_from(IPS),
        st.sets(st.sampled_from([WORKER, HUB, HEAD, STATIC]), min_size=1),
    ),
    max_size=8,
)


@given(_MAPS, st.booleans())
def test_only_signed_members_are_accepted_from_any_coordinator(maps: list[Node], locked: bool) -> None:
    rules = LOCKED if locked else OPEN
    # Without a lock the first map is trusted.
    pin = None if locked else pinned(node(_HONEST[0]))
    highest = pin.counter if pin is not None else 0
    for shown in maps:
        judgement = judge(shown, pin, rules)
        used = judgement.applied(shown)
        if used is not None:
            assert any(one.covers(MESH, used.public_key, used.ip) for one in _HONEST)
            assert judgement.pin is not None
            assert judgement.pin.identity == IDENTITY.public()
            assert HEAD not in used.roles
            assert HUB not in used.roles or judgement.pin.roles == {HUB}
            assert shown.roles >= used.roles
        if judgement.pin is not None:
            assert judgement.pin.counter >= highest
            highest = judgement.pin.counter
        pin = judgement.pin or pin


def test_a_private_key_is_not_shown() -> None:
    assert LOCK.reveal() not in repr(LOCK) + str(LOCK)
