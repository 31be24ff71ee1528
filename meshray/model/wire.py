"""Typed reading of JSON that came from outside: every field has a type and a bound.

    >>> text({"name": "gpu-1"}, "name", 63)
    'gpu-1'

Everything that does not fit raises `WireError`, which a server answers with 400 and a client treats
as a peer that speaks another language.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address
from typing import TypeGuard

from meshray.model.printable import printable
from meshray.protocol.codec import WireError
from meshray.protocol.fields import MAX_ITEM_CHARACTERS, MAX_ITEMS


def text(value: Mapping[str, object], key: str, longest: int, default: str | None = None) -> str:
    """A string of at most ``longest`` characters."""
    item = value.get(key, default)
    if not _is_text(item, longest):
        raise WireError(f"{key}: must be a text of at most {longest} characters")
    return item


def number(value: Mapping[str, object], key: str, low: int, high: int, default: int | None = None) -> int:
    """An integer within bounds, both included."""
    item = value.get(key, default)
    if not isinstance(item, int) or isinstance(item, bool) or not low <= item <= high:
        raise WireError(f"{key}: must be a whole number from {low} to {high}")
    return item


def address(value: Mapping[str, object], key: str) -> IPv4Address:
    """An IPv4 address."""
    try:
        return IPv4Address(text(value, key, 15))
    except AddressValueError:
        raise WireError(f"{key}: must be an IPv4 address") from None


def flag(value: Mapping[str, object], key: str, default: bool = False) -> bool:
    """A truth value; absent means ``default``."""
    item = value.get(key, default)
    if not isinstance(item, bool):
        raise WireError(f"{key}: must be true or false")
    return item


def texts(value: Mapping[str, object], key: str) -> tuple[str, ...]:
    """A list of strings; absent means empty."""
    items = value.get(key, [])
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise WireError(f"{key}: must be a list of at most {MAX_ITEMS} texts")
    for item in items:
        if not _is_text(item, MAX_ITEM_CHARACTERS):
            raise WireError(f"{key}: must be a list of at most {MAX_ITEMS} texts")
    return tuple(items)


def mapping(value: Mapping[str, object], key: str) -> Mapping[str, object]:
    """A JSON object; absent means empty."""
    item = value.get(key, {})
    if not isinstance(item, dict):
        raise WireError(f"{key}: must be an object")
    return item


def text_map(value: Mapping[str, object], key: str) -> dict[str, str]:
    """An object whose values are strings; absent means empty."""
    items = mapping(value, key)
    if len(items) > MAX_ITEMS:
        raise WireError(f"{key}: has more than {MAX_ITEMS} entries")
    for name, item in items.items():
        if not _is_text(item, MAX_ITEM_CHARACTERS) or not _is_text(name, MAX_ITEM_CHARACTERS):
            raise WireError(f"{key}: must map texts to texts")
    return {name: str(item) for name, item in items.items()}


def printable_map(value: Mapping[str, object], key: str) -> dict[str, str]:
    """The same as `text_map`, without characters that are not printable: people see these texts in their terminals."""
    return {printable(name): printable(item) for name, item in text_map(value, key).items()}


def _is_text(item: object, longest: int) -> TypeGuard[str]:
    if not isinstance(item, str) or len(item) > longest:
        return False
    # JSON can spell half a surrogate pair, which nothing can hash, store or print.
    return item.isascii() or not any("\ud800" <= character <= "\udfff" for character in item)
