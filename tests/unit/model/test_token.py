"""The token: every kind of faulty paste has its own answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.errors import RefusedError, UsageError
from meshray.model.address import Endpoint
from meshray.model.token import MAX_TOKEN_CHARACTERS, PREFIX, Token, hash_secret, new_secret

TOKEN = Token(
    "0011223344556677",
    (Endpoint("203.0.113.10", 51888), Endpoint("2001:db8::1", 51888), Endpoint("head.example", 443)),
    bytes(range(32)),
    "abcd1234",
    "secret-part",
)


def test_a_token_survives_the_paste() -> None:
    assert Token.parse(TOKEN.encode()) == TOKEN


def test_line_breaks_of_a_terminal_are_ignored() -> None:
    text = TOKEN.encode()
    assert Token.parse(f"  {text[:40]}\n{text[40:90]} \r\n{text[90:]}\n") == TOKEN


@given(st.integers(min_value=len(PREFIX), max_value=len(TOKEN.encode()) - 1))
def test_a_truncated_token_is_distinguished_from_a_refused_one(length: int) -> None:
    with pytest.raises(RefusedError) as caught:
        Token.parse(TOKEN.encode()[:length])
    assert caught.value.code == "token_damaged"
    assert "secret-part" not in caught.value.message


@given(st.integers(min_value=len(PREFIX), max_value=len(TOKEN.encode()) - 1), st.sampled_from("ABCxyz019-_"))
def test_a_mistyped_character_is_noticed(place: int, character: str) -> None:
    text = TOKEN.encode()
    changed = text[:place] + character + text[place + 1 :]
    if changed == text:
        return
    # The last character of base64 has unused bits; a change of those gives the same token.
    try:
        assert Token.parse(changed) == TOKEN
    except RefusedError as error:
        assert error.code == "token_damaged"


@given(st.text(max_size=200))
def test_anything_else_is_not_a_token(text: str) -> None:
    with pytest.raises((UsageError, RefusedError)):
        Token.parse(text)


def test_an_endless_paste_is_bounded() -> None:
    with pytest.raises(UsageError):
        Token.parse(PREFIX + "A" * (MAX_TOKEN_CHARACTERS * 10))


def test_the_secret_is_in_no_repr_and_only_hashed_at_rest() -> None:
    assert "secret-part" not in repr(TOKEN)
    assert hash_secret("secret-part") != hash_secret("secret-parts")
    assert new_secret() != new_secret()
