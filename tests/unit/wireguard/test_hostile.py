"""The output of an engine or a firewall, changed at will, is read or refused; it never breaks the reader."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.errors import MeshrayError
from meshray.wireguard import uapi

from .test_uapi import ANSWER

KEYS = sorted({line.partition("=")[0] for line in ANSWER.splitlines() if line})
LINE = st.tuples(
    st.sampled_from(KEYS),
    st.sampled_from(["", "0", "-1", "x", "9" * 30, "00" * 32, "0a", "[::1]:5", "1.2.3.4", "٣", "a:b"]),
).map("=".join)


@given(st.lists(LINE | st.sampled_from(ANSWER.splitlines()) | st.text(max_size=20), max_size=12))
def test_any_engine_output_is_parsed_or_rejected(lines: list[str]) -> None:
    for answer in ("\n".join(lines), "\n".join([*lines, "errno=0", "", ""])):
        with contextlib.suppress(MeshrayError, OSError):
            uapi.parse(answer)


@given(st.data())
def test_an_answer_with_one_line_changed(data: st.DataObject) -> None:
    lines = ANSWER.splitlines()
    place = data.draw(st.integers(0, len(lines) - 3))
    lines[place] = data.draw(LINE)
    with contextlib.suppress(MeshrayError, OSError):
        uapi.parse("\n".join(lines))


@pytest.mark.parametrize("secret", ["0c" * 31 + "zz", "0b" * 33])
def test_a_damaged_key_is_not_quoted(secret: str) -> None:
    with pytest.raises(MeshrayError) as caught:
        uapi.parse(ANSWER.replace("0c" * 32, secret))
    assert caught.value.code == "engine_failed"
    assert secret not in caught.value.message
