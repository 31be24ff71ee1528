r"""Untrusted text, made harmless for terminals.

Nodes choose their versions, labels and reports themselves. A terminal acts on control characters in them: it moves the
cursor, hides lines, sets its title or answers as if its user had typed.

>>> escaped("2.60\x1b[2J")
'2.60\\x1b[2J'
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

#: Sequences that only set colours (SGR of ECMA-48). Programs write them into logs.
_COLOURS = re.compile(r"\x1b\[[0-9;:]{0,32}m")


def escaped(text: str, keep: str = "") -> str:
    """Return the text with every non-printable character escaped, as in Python's repr.

    Such are control characters, line breaks, and those that change the direction of text.

    Args:
        keep: characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _escape(letter) for letter in text)


def escaped_lines(text: str) -> str:
    """Return a text of several lines with its line breaks and tabs, without colours, and with all else escaped."""
    return escaped(_COLOURS.sub("", text), keep="\n\t")


def escaped_all(value: Any) -> Any:
    """Return a JSON value, or a message, with every text in it escaped, keys included."""
    if isinstance(value, str):
        return value if isinstance(value, Enum) else escaped(value)
    if isinstance(value, Mapping):
        return {escaped_all(key): escaped_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(escaped_all(item) for item in value)
    # Structs of msgspec, which is not imported for --help, and dataclasses.
    names = getattr(value, "__struct_fields__", ()) or getattr(value, "__match_args__", ())
    return type(value)(**{name: escaped_all(getattr(value, name)) for name in names}) if names else value


def printable(text: str) -> str:
    """Return the text without non-printable characters: for names and labels, which never need them."""
    return text if text.isprintable() else "".join(filter(str.isprintable, text))


def printable_map(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the texts, keys included, without non-printable characters."""
    return {printable(name): printable(text) for name, text in texts.items()}


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
