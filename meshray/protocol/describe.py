"""The fields of a message for documents: path, type, and the meaning from the docstring of its class.

>>> [(field.path, field.kind) for field in described(Down)]
[('node', 'text'), ('was_running', 'true or false')]
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", object: "any"}
#: One field of the section "Attributes:" of a docstring, over several lines.
_ATTRIBUTE = re.compile(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        path: its position: ``nodes[].path.kind``.
        kind: its type in words.
        meaning: its meaning; empty if the class does not document it.
        is_optional: it may be absent.
    """

    path: str
    kind: str
    meaning: str
    is_optional: bool


def described(form: type[Any]) -> Iterator[Field]:
    """Yield each field of the Struct and of its nested Structs, in their order."""
    yield from _described(form, "", is_optional=False)


def meanings(form: type[Any]) -> dict[str, str]:
    """Return the descriptions of the attributes in the docstrings of a class and its bases."""
    sections = (inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2] for base in reversed(form.__mro__))
    found = ((name, " ".join(text.split())) for section in sections for name, text in _ATTRIBUTE.findall(section))
    return {name: text.replace("``", "`").removesuffix(".").replace("None", "null") for name, text in found}


def _described(form: type[Any], prefix: str, *, is_optional: bool) -> Iterator[Field]:
    meaning = meanings(form)
    for name, key, kind in _fields(form):
        kinds = _alternatives(kind)
        optional = is_optional or msgspec.UnsetType in kinds
        path = f"{prefix}.{key}" if prefix else key
        inner, suffix = _inner(kinds)
        if not (optional and inner is not None):
            kind_text = " or ".join(dict.fromkeys(_type_text(one) for one in kinds if one is not msgspec.UnsetType))
            yield Field(path, kind_text, meaning.get(name, ""), optional)
        if inner is not None:
            yield from _described(inner, path + suffix, is_optional=optional)


def _fields(form: type[Any]) -> Iterator[tuple[str, str, Any]]:
    if dataclasses.is_dataclass(form):
        hints = typing.get_type_hints(form)
        yield from ((field.name, field.name, hints[field.name]) for field in dataclasses.fields(form))
    else:
        yield from ((field.name, field.encode_name, field.type) for field in msgspec.structs.fields(form))


def _alternatives(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) is typing.Annotated:
        return _alternatives(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(plain for one in typing.get_args(kind) for plain in _alternatives(one))
    return (kind,)


def _inner(kinds: tuple[Any, ...]) -> tuple[type[Any] | None, str]:
    """Return the class whose fields are below a field, and the suffix of its path; (None, "") if there is none."""
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            found, suffix = _inner(typing.get_args(kind)[:1])
            return found, f"[]{suffix}"
        if isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind)):
            return kind, ""
    return None, ""


def _type_text(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return "list of " + " or ".join(_type_text(one) for one in _alternatives(arguments[0]))
    if origin is typing.Literal:
        return " or ".join(str(value).lower() for value in arguments)
    if origin is not None and issubclass(origin, Mapping):
        return f"object of {' or '.join(map(_type_text, _alternatives(arguments[1])))} by name"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    return _PLAIN.get(kind, "object")
