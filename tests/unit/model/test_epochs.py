from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.errors import MeshrayError
from meshray.model.epochs import SharedSecrets, pair_epoch
from meshray.model.keys import MeshSecret
from meshray.protocol.codec import convert, decode, encode
from meshray.protocol.connection import MOST_EPOCHS, Secrets
from meshray.protocol.fields import MAX_EPOCH
from meshray.raynode.tokens import RayTokens, epoch_of, new_instance

EPOCHS = st.integers(1, 9)
HELD = st.sets(EPOCHS, min_size=1)
SECRET = MeshSecret(bytes(32))


@given(EPOCHS, EPOCHS, HELD)
def test_both_ends_choose_alike_and_only_what_they_hold(a: int, b: int, held: set[int]) -> None:
    chosen = pair_epoch(a, b, held)
    assert chosen == pair_epoch(b, a, held)
    assert chosen in held


@given(EPOCHS, EPOCHS, HELD, HELD)
def test_ends_that_hold_what_they_report_agree(a: int, b: int, of_a: set[int], of_b: set[int]) -> None:
    lower = min(a, b)
    assert pair_epoch(a, b, of_a | {lower}) == pair_epoch(a, b, of_b | {lower}) == lower


@given(EPOCHS, EPOCHS, EPOCHS, HELD)
def test_the_choice_never_falls_while_epochs_rise(a: int, b: int, more: int, held: set[int]) -> None:
    assert pair_epoch(a + more, b, held) >= pair_epoch(a, b, held)


@given(st.sets(st.integers(1, MAX_EPOCH), min_size=1, max_size=5))
def test_secrets_travel_unchanged_and_show_nothing(epochs: set[int]) -> None:
    shared = SharedSecrets(dict.fromkeys(epochs, SECRET), dict.fromkeys(epochs, "ray's"), min(epochs))
    assert SharedSecrets.of(decode(encode(shared.message()), Secrets)) == shared
    assert "ray's" not in repr(shared)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"oldest": 1, "mesh": {}, "ray": {}},
        {"oldest": 1, "mesh": {"2": SECRET.reveal()}, "ray": {"1": "x"}},
        {"oldest": 0, "mesh": {"1": SECRET.reveal()}, "ray": {"1": "x"}},
        {"oldest": 1, "mesh": {"01": SECRET.reveal()}, "ray": {"01": "x"}},
        {"oldest": 1, "mesh": {"-1": SECRET.reveal()}, "ray": {"-1": "x"}},
        {"oldest": 1, "mesh": {"99999999999": SECRET.reveal()}, "ray": {"99999999999": "x"}},
        {"oldest": 1, "mesh": {"1": "short"}, "ray": {"1": "x"}},
        {"oldest": 1, "mesh": {"1": SECRET.reveal()}, "ray": {"1": "x" * 257}},
        {"oldest": 1, "mesh": [], "ray": {"1": "x"}},
        {"oldest": 1, "mesh": dict.fromkeys(map(str, range(1, MOST_EPOCHS + 2)), SECRET.reveal()), "ray": {"1": "x"}},
    ],
)
def test_other_forms_are_refused(value: dict[str, object]) -> None:
    with pytest.raises(MeshrayError):
        SharedSecrets.of(convert({"type": "secrets", **value}, Secrets))


@given(st.integers(1, MAX_EPOCH))
def test_an_instance_names_the_epoch_of_its_token(epoch: int) -> None:
    assert epoch_of(new_instance(epoch)) == epoch
    assert len(new_instance(epoch)) <= 64


@given(st.text(max_size=64))
def test_any_instance_has_an_epoch(instance: str) -> None:
    assert 1 <= epoch_of(instance) <= MAX_EPOCH


def test_a_token_belongs_to_an_instance() -> None:
    tokens = RayTokens({1: "first", 3: "third"})
    assert tokens.of("") == "third"
    assert tokens.of("a1b2c3d4e5f60718") == tokens.of("first-life") == "first"
    assert tokens.of(new_instance(3)) == "third"
    assert tokens.of(new_instance(2)) is None
    assert "third" not in repr(tokens)
