"""Answers whose common part is compressed once."""

from __future__ import annotations

import gzip

import pytest

from meshray.web.compression import SharedText, gzipped

MAIN = "".join(f"<tr><td>node-{number}</td><td>→</td></tr>" for number in range(2000))


@pytest.mark.parametrize("head", [b"", b"<html>", b"h" * 200_000])
@pytest.mark.parametrize("main", ["", "<p>", MAIN])
@pytest.mark.parametrize("tail", [b"", b"</html>"])
def test_an_answer_is_its_three_parts(head: bytes, main: str, tail: bytes) -> None:
    assert gzip.decompress(gzipped(head, SharedText(main), tail)) == head + main.encode() + tail


def test_the_common_part_is_small_and_made_once() -> None:
    shared = SharedText(MAIN)
    first, second = (gzipped(head, shared, b"") for head in (b"one", b"another"))
    assert len(first) < len(MAIN) / 8
    assert shared.deflated in first
    assert shared.deflated in second
    assert shared.deflated is shared.deflated


def test_the_length_says_nothing_about_what_the_parts_of_a_session_repeat() -> None:
    secret = b'<input name="csrf" value="0123456789abcdef">'
    lengths = {
        len(gzipped(secret + guess, SharedText(MAIN), b"")) for guess in (b"0123456789abcdef", b"fedcba9876543210")
    }
    assert len(lengths) == 1
