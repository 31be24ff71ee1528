"""Conversion between JSON and values.

>>> decode(b'{"mesh_id": "m1", "token_id": "t1", "secret": "s"}', TokenForm).mesh_id
'm1'

Fields that a Struct does not have are ignored, so that an older side understands a newer one. Every other mismatch
raises `WireError`, which a server answers with 400 and a client treats as an incompatible peer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, get_args

import msgspec

from meshray.errors import MeshrayError

T = TypeVar("T")
F = TypeVar("F")


class WireError(MeshrayError):
    """A message does not have the form that the protocol defines."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_message", message, hint="are both sides of the same meshray version?")


def decode(data: bytes | str, form: type[T]) -> T:
    """Return the value in this JSON text. Raises WireError."""
    with _refusing():
        return msgspec.json.decode(data, type=form)


def decode_object(data: bytes | str) -> dict[str, object]:
    """Return a JSON object of any form. Raises WireError."""
    return decode(data, dict[str, object])


def convert(value: object, form: type[T]) -> T:
    """Return the value in a result of `decode_object`, or in a part of it. Raises WireError."""
    with _refusing():
        return msgspec.convert(value, form)


def encode(message: msgspec.Struct) -> str:
    """Return the JSON text of a message, in ASCII."""
    return json.dumps(to_json(message))


def to_json(message: object) -> dict[str, object]:
    """Return the message, or an object that contains messages, as a dictionary for `json.dumps`."""
    value: dict[str, object] = msgspec.to_builtins(message, enc_hook=_text)
    return value


def _text(value: object) -> str:
    """Return a name, which has its own type, as plain text."""
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError


def optional(make: Callable[[F], T], form: F | msgspec.UnsetType) -> T | None:
    """Return the value of an optional field; None if it is absent."""
    return None if isinstance(form, msgspec.UnsetType) else make(form)


def or_unset(text: F) -> F | msgspec.UnsetType:
    """Return the value of a field that is omitted if it is empty."""
    return text or msgspec.UNSET


class Messages:
    """Decode the messages of one side of a connection, which their ``type`` distinguishes.

    Args:
        union: the union of the Structs of all messages.
    """

    def __init__(self, union: object) -> None:
        self._decoder = msgspec.json.Decoder(union)
        self._types = {form.__struct_config__.tag for form in get_args(union)}

    def decode(self, text: str) -> object:
        """Return the message; None if its ``type`` is not known. Raises WireError."""
        with _refusing():
            try:
                return self._decoder.decode(text)
            except msgspec.ValidationError:
                if msgspec.json.decode(text, type=_Typed).type in self._types:
                    raise
                return None


class _Typed(msgspec.Struct):
    type: str


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except msgspec.ValidationError as error:
        raise WireError(str(error)) from None
    # A string with half a surrogate pair cannot be encoded for the decoder.
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        raise WireError("not JSON") from None
